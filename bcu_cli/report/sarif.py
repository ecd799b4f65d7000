"""An inspection as SARIF 2.1.0 (OASIS), the format that code-scanning services read.

A finding is a ``result``. A file that was not read is a notification, and makes the run unsuccessful.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bcu_cli import __version__
from bcu_cli.checkpoints import RULES
from bcu_cli.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bcu_cli.checkpoints import Rule

_LEVELS = {"unsafe": "error", "suspicious": "error", "unread": "error", "note": "note"}
_SEVERITIES = {"unsafe": "9.0", "suspicious": "7.0"}
"""Severities by which GitHub sorts."""
_IDS = list(RULES)


def sarif(inspected: Mapping[str, Any], exit_code: int) -> dict[str, Any]:
    """The SARIF log of one run of ``bcu inspect``.

    Args:
        inspected: The JSON document of the command: ``files``, each with ``findings`` and ``problem``, and
            ``problems``.
        exit_code: Exit code of the command.
    """
    files = inspected["files"]
    problems = [
        *inspected["problems"],
        *(file["problem"] | {"path": file["path"]} for file in files if file["problem"]),
    ]
    invocation = {
        "executionSuccessful": not problems,
        "exitCode": exit_code,
        "toolExecutionNotifications": [_notification(problem) for problem in problems],
    }
    driver = {
        "name": "bcu",
        "semanticVersion": __version__,
        "rules": [_descriptor(rule) for rule in RULES.values()],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "artifacts": [_artifact(file) for file in files],
        "results": [_result(finding, file) for file in files for finding in file["findings"]],
        "columnKind": "unicodeCodePoints",
    }
    return {"version": "2.1.0", "$schema": "https://json.schemastore.org/sarif-2.1.0.json", "runs": [run]}


def _descriptor(rule: Rule) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.help},
        "help": {"text": rule.help},
        "defaultConfiguration": {"level": _LEVELS[rule.level]},
    }
    if severity := _SEVERITIES.get(rule.level):
        described["properties"] = {"tags": ["security"], "security-severity": severity}
    return described


def _artifact(file: Mapping[str, Any]) -> dict[str, Any]:
    artifact: dict[str, Any] = {"location": {"uri": _uri(file["path"])}}
    if file.get("bytes") is not None:
        artifact["length"] = file["bytes"]
    if file.get("sha256"):
        artifact["hashes"] = {"sha-256": file["sha256"]}
    return artifact


def _result(finding: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding["rule"],
        "ruleIndex": _IDS.index(finding["rule"]),
        "level": _LEVELS[finding["severity"]],
        "message": {"text": _text(f"{file['path']}: {finding['message']}")},
        "locations": _locations(file["path"]),
    }
    if finding["offset"] is not None:  # in the pickle, which may be a member of an archive
        result["properties"] = {"pickleOffset": finding["offset"]}
    return result


def _notification(problem: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "descriptor": {"id": problem["rule"], "index": _IDS.index(problem["rule"])},
        "level": "error",
        "message": {"text": _text(f"{problem['message']} ({problem['hint']})")},
        "locations": _locations(problem["path"]),
    }


def _text(text: str) -> str:
    """A message without control characters and without SARIF's embedded links."""
    return re.sub(r"[\\\[\]]", r"\\\g<0>", printable(text))


def _locations(path: str) -> list[dict[str, Any]]:
    return [{"physicalLocation": {"artifactLocation": {"uri": _uri(path)}}}]


def _uri(path: str) -> str:
    """A path as a URI, relative where the path is relative, as code-scanning services expect."""
    quoted = quote(os.fsencode(PurePath(path).as_posix()))
    return f"file://{quoted}" if PurePath(path).is_absolute() else quoted
