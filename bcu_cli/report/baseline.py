"""The baseline of an inspection: an earlier document of the command, whose findings are no longer reported.

A note is identified by its rule, the path of its file and its message, whatever the content of the file. What
is unsafe or suspicious is accepted for one content only, and a problem means that the content is not known.
So their fingerprints include the SHA-256 of the file: another file under an accepted name is reported.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints import sha256_of
from bcu_cli.errors import UsageError
from bcu_cli.report.schema import SCHEMA_VERSION
from bcu_cli.report.text import as_uri

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

FINGERPRINT = "bcu/v1"
"""Name of the fingerprints in SARIF; another way of making them gets another name."""
PARTIAL = "baseline"
"""Property of a document that was made with a baseline and so lacks known findings."""
_OF_ONE_CONTENT = ("unsafe", "suspicious")
"""Severities that are accepted for one content of a file only."""
_LARGEST = 2**28
"""Most bytes of a baseline."""
_HINT = "name the output of an earlier bcu inspect --json, or --format sarif"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What an earlier inspection reported.

    Attributes:
        path: The file.
        sha256: SHA-256 of the file.
        fingerprints: Fingerprints of all findings and problems.
    """

    path: Path
    sha256: str
    fingerprints: frozenset[str]

    def apply(self, files: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Move what is known of each file from ``findings`` and ``problem`` to ``known``.

        Args:
            files: The documents of files, changed in place.

        Returns:
            The path and SHA-256 of the baseline, and the numbers of ``known`` and ``new`` entries.
        """
        known = new = 0
        for file in files:
            found = [each for each in file["findings"] if self._has(of_finding(file, each))]
            problem = file["problem"] if self._has(of_problem(file)) else None
            file["findings"] = [each for each in file["findings"] if each not in found]
            file["problem"] = None if problem else file["problem"]
            file["known"] = {"findings": found, "problem": problem}
            known += len(found) + bool(problem)
            new += len(file["findings"]) + bool(file["problem"])
        return {"path": str(self.path), "sha256": self.sha256, "known": known, "new": new}

    def _has(self, fingerprint: str | None) -> bool:
        return fingerprint in self.fingerprints


def of_finding(file: Mapping[str, Any], finding: Mapping[str, Any]) -> str | None:
    """The fingerprint of a finding, a SHA-256; None where it needs that of the file and there is none.

    Args:
        file: The document of the file.
        finding: The finding, with ``rule``, ``severity`` and ``message``.
    """
    parts = (finding["rule"], as_uri(file["path"]), finding["message"])
    if finding["severity"] not in _OF_ONE_CONTENT:
        return _digest(*parts)
    return _digest(*parts, file["sha256"]) if file.get("sha256") else None


def of_problem(file: Mapping[str, Any]) -> str | None:
    """The fingerprint of a file's problem; None without a problem, or where the SHA-256 is not known."""
    problem, sha256 = file["problem"], file.get("sha256")
    if not problem or not sha256:
        return None
    return _digest(problem["rule"], as_uri(file["path"]), problem["message"], sha256)


def read(path: Path) -> Baseline:
    """Read a baseline: a JSON document of ``bcu inspect``, or its SARIF log.

    Raises:
        UsageError: The file cannot be read, is another document, or was itself made with a baseline.
    """
    content = _content(path)
    partial = UsageError(
        f"--baseline {path} was itself made with --baseline, and lacks what was known then",
        "make it again without --baseline",
    )
    try:
        if "runs" in content:
            (run,) = content["runs"]
            is_own = run["tool"]["driver"]["name"] == "bcu"
            is_partial = PARTIAL in run.get("properties", {})
            found = _in_sarif(run) if is_own else frozenset()
        else:
            is_own = (content["command"], content["schema_version"]) == ("inspect", SCHEMA_VERSION)
            is_partial = PARTIAL in content
            found = _in_document(content) if is_own else frozenset()
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _foreign(path) from error
    if not is_own:
        raise _foreign(path)
    if is_partial:
        raise partial
    return Baseline(path=path, sha256=sha256_of(path), fingerprints=found)


def _content(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        if not path.is_file():
            raise UsageError(f"--baseline {path} is no file", _HINT)
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"--baseline {path} is too large for a document of bcu inspect", _HINT)
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--baseline {path} cannot be read: {error.strerror}", _HINT) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--baseline {path} is no JSON", _HINT) from error
    if not isinstance(content, dict):
        raise _foreign(path)
    return content


def _foreign(path: Path) -> UsageError:
    return UsageError(f"--baseline {path} is no document of this version of bcu inspect", _HINT)


def _in_document(content: Mapping[str, Any]) -> frozenset[str]:
    found = [of_finding(file, each) for file in content["files"] for each in file["findings"]]
    return frozenset(made for made in (*found, *map(of_problem, content["files"])) if made)


def _in_sarif(run: Mapping[str, Any]) -> frozenset[str]:
    found = {
        fingerprint
        for each in run["results"]
        if each.get("kind", "fail") == "fail"
        for fingerprint in each["partialFingerprints"].values()
    }
    notes = [note for each in run["invocations"] for note in each["toolExecutionNotifications"]]
    return frozenset(found | {note["properties"][FINGERPRINT] for note in notes if "properties" in note})


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
