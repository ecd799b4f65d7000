"""The base class of the results of workflows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bcu_cli.report.schema import with_version


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a workflow.

    Attributes:
        document: The JSON document of the command, as plain values.
    """

    document: dict[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The document that the command prints with ``--json``."""
        return with_version(self.document)
