"""The version of the JSON documents, and the form in which they leave bcu."""

from __future__ import annotations

from typing import Any

SCHEMA_VERSION = 2


def with_version(content: dict[str, Any]) -> dict[str, Any]:
    """A document with ``schema_version`` as its first field."""
    return {"schema_version": SCHEMA_VERSION, **content}
