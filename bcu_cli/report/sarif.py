"""An inspection as SARIF 2.1.0 (OASIS), the format that code-scanning services read.

A finding is a ``result``, and so is each verdict of a scan, under a rule of its own. A file that was not read
is a notification, and makes the run unsuccessful.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bcu_cli import __version__
from bcu_cli.checkpoints import RULES
from bcu_cli.report import baseline
from bcu_cli.report.text import as_uri, printable, searched_of_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bcu_cli.checkpoints import Rule

_LEVELS = {"unsafe": "error", "suspicious": "error", "unread": "error", "note": "note"}
_VERDICTS = {
    "clean-looking": ("scan-clean-looking", "pass", "the scan found no sign of a backdoor"),
    "inconclusive": ("scan-undecided", "open", "the scan could not decide whether there is a backdoor"),
}
"""Rule, SARIF kind and message of the verdicts that are no findings; a suspicious network is a finding."""
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
        *(
            file["problem"] | {"path": file["path"], "fingerprint": baseline.of_problem(file)}
            for file in files
            if file["problem"]
        ),
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
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "artifacts": [_artifact(file) for file in files],
        "results": [result for file in files for result in _results(file)],
        "columnKind": "unicodeCodePoints",
    }
    if baseline.PARTIAL in inspected:
        run["properties"] = {baseline.PARTIAL: inspected[baseline.PARTIAL]}
        for result in run["results"]:
            result["baselineState"] = "new" if "partialFingerprints" in result else "unchanged"
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
    artifact: dict[str, Any] = {"location": {"uri": as_uri(file["path"])}}
    if file.get("bytes") is not None:
        artifact["length"] = file["bytes"]
    if file.get("sha256"):
        artifact["hashes"] = {"sha-256": file["sha256"]}
    return artifact


def _results(file: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The findings in a file, and the verdict of its scan."""
    results = [_result(finding, file) for finding in file["findings"]]
    verdict = file["scan"]["verdict"] if "scan" in file else None
    if verdict in _VERDICTS:
        rule, kind, message = _VERDICTS[verdict]
        some = searched_of_all(file["scan"])
        results.append(
            {
                "ruleId": rule,
                "ruleIndex": _IDS.index(rule),
                "kind": kind,
                "level": "none",
                "message": {"text": _text(f"{file['path']}: {message}{some and f'; it {some}'}")},
                "locations": _locations(file["path"]),
            }
        )
    return results


def _result(finding: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    fingerprint = baseline.of_finding(file, finding)
    result: dict[str, Any] = {
        "ruleId": finding["rule"],
        "ruleIndex": _IDS.index(finding["rule"]),
        "level": _LEVELS[finding["severity"]],
        "message": {"text": _text(f"{file['path']}: {finding['message']}")},
        "locations": _locations(file["path"]),
        "partialFingerprints": {baseline.FINGERPRINT: fingerprint} if fingerprint else {},
    }
    if finding["offset"] is not None:  # in the pickle, which may be a member of an archive
        result["properties"] = {"pickleOffset": finding["offset"]}
    return result


def _notification(problem: Mapping[str, Any]) -> dict[str, Any]:
    notification: dict[str, Any] = {
        "descriptor": {"id": problem["rule"], "index": _IDS.index(problem["rule"])},
        "level": "error",
        "message": {"text": _text(f"{problem['message']} ({problem['hint']})")},
        "locations": _locations(problem["path"]),
    }
    if problem.get("fingerprint"):
        notification["properties"] = {baseline.FINGERPRINT: problem["fingerprint"]}
    return notification


def _text(text: str) -> str:
    """A message without control characters and without SARIF's embedded links."""
    return re.sub(r"[\\\[\]]", r"\\\g<0>", printable(text))


def _locations(path: str) -> list[dict[str, Any]]:
    return [{"physicalLocation": {"artifactLocation": {"uri": as_uri(path)}}}]
