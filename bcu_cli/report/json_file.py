"""Atomic writing of JSON documents; needs no torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints import atomic_write

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a document, replacing the file.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
