"""The provenance of a cleansed file, as an in-toto Statement v1 that signing tools can sign.

The predicate is SLSA Provenance v1: the original is a dependency, the options are external parameters,
and the packages are versions of the builder. The verdict has no place in it and is an extension field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints import write_bytes
from bcu_cli.report.text import architecture_name

if TYPE_CHECKING:
    from collections.abc import Mapping

SUFFIX = ".intoto.json"
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
_PACKAGE = "pkg:generic/bcu-cli"
_BUILD_TYPE = f"{_PACKAGE}#cleanse"
_DIGITS = 64


def path_beside(out: Path) -> Path:
    """The file of the statement on ``out``."""
    return out.parent / (out.name + SUFFIX)


def write(report: Mapping[str, Any]) -> tuple[Path, str]:
    """Write the statement beside the output of a cleansing; returns its path and SHA-256.

    Args:
        report: The report, as :func:`statement` takes it.

    Raises:
        OutputError: The file cannot be written.
    """
    path = path_beside(Path(report["output"]["path"]))
    text = json.dumps(statement(report), indent=2, allow_nan=False) + "\n"
    return path, write_bytes(path, text.encode())


def statement(report: Mapping[str, Any]) -> dict[str, Any]:
    """The statement on the output of a cleansing. It names files without their folders.

    Args:
        report: The report of the command, with ``output`` and ``files_read``.
    """
    output = report["output"]
    return {
        "_type": STATEMENT,
        "subject": [_resource(each) for each in (output, *output["beside"])],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {"method": report["method"], "options": report["options"]},
                "internalParameters": _internal(report),
                "resolvedDependencies": _dependencies(report),
            },
            "runDetails": {"builder": {"id": _PACKAGE, "version": report["versions"]}},
            "bcu_verdict": report["verdict"],
            "bcu_agreement": report["agreement"],
        },
    }


def _internal(report: Mapping[str, Any]) -> dict[str, Any]:
    """The values that bcu determined: network, preprocessing, images and device."""
    preprocessing, images = report["model"]["preprocessing"], report["images"]
    return {
        "architecture": architecture_name(report["model"]["architecture"]["name"]),
        "preprocessing": {key: preprocessing[key] for key in ("input_size", "mean", "std")},
        "images": images and {key: images[key] for key in ("used", "held_out", "sha256")},
        "device": report["device"],
    }


def _dependencies(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The original first, and then the other files that were read."""
    named = [report["model"], *report["files_read"]]
    found = [_resource(each) for each in named if len(each.get("sha256") or "") == _DIGITS]
    return [each for number, each in enumerate(found) if each not in found[:number]]


def _resource(file: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": Path(file["path"]).name, "digest": {"sha256": file["sha256"]}}
