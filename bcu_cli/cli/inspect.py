"""``bcu inspect``: what a model file is, without running anything in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bcu_cli.cli import output
from bcu_cli.cli.exit_codes import BAD, FAILED
from bcu_cli.cli.options import Arch, Json, Model
from bcu_cli.errors import UnsafeFileError

if TYPE_CHECKING:
    from bcu_cli.checkpoints import Checkpoint, Description

_MOST_SHOWN = 20


def inspect(model: Model, arch: Arch = None, as_json: Json = False) -> None:
    """Say what a file is, by its content, and whether it is safe to open.

    An unsafe file exits 1; what cannot be read or is not recognised exits 2. Whether a model behaves as if
    it had a backdoor is not looked at: a file without findings can still hold one.
    """
    from bcu_cli.checkpoints import inspect_only

    try:
        description = inspect_only(model)
        report = _describe(description) if description.is_unsafe else _read(model, arch)
    except UnsafeFileError as error:  # it hides what it does, so that there is nothing to list: a verdict too
        output.fail(error.message, error.hint)
        if as_json:
            output.document(
                {"command": "inspect", "path": str(model), "safe": False, "reason": error.message}
            )
        raise typer.Exit(BAD) from error
    if as_json:
        output.document(report)
    else:
        _show(report)
    if not report["safe"]:
        raise typer.Exit(BAD)
    if problem := _problem(report):
        output.fail(*problem)
        raise typer.Exit(FAILED)


def _describe(description: Description) -> dict[str, Any]:
    """What is known of a file without opening it."""
    return {
        "command": "inspect",
        "path": str(description.path),
        "kind": description.kind,
        "format": description.format.value,
        "sha256": description.sha256,
        "bytes": description.size,
        "safe": not description.is_unsafe,
        "findings": [asdict(finding) for finding in description.findings],
        "operators": list(description.operators),
    }


def _read(model: Path, arch: str | None) -> dict[str, Any]:
    """What is known of a file that is safe to open."""
    from bcu_cli.checkpoints import read
    from bcu_cli.errors import ArchitectureError
    from bcu_cli.models import identify

    checkpoint = read(model)
    report = _describe(checkpoint) | _tensors(checkpoint)
    try:
        report["architecture"] = asdict(identify(checkpoint, arch))
    except ArchitectureError as error:
        report["architecture"] = None
        report["architecture_unknown"] = {"message": error.message, "hint": error.hint}
    return report


def _tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """Number, types and broken values of the tensors, and what stands beside them."""
    tensors = checkpoint.tensors
    broken = {
        name: int((~tensor.isfinite()).sum())
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    }
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return {
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()),
        "dtypes": dict(dtypes),
        "not_finite": broken,
        "nesting": list(checkpoint.nesting),
        "prefix": checkpoint.prefix,
        "metadata": checkpoint.metadata,
        "beside": checkpoint.beside,
        "left_out": list(checkpoint.left_out),
    }


def _problem(report: dict[str, Any]) -> tuple[str, str] | None:
    """Why a file that is safe to open is no classifier that bcu can work on; None where it is."""
    if report["not_finite"]:
        name, count = next(iter(report["not_finite"].items()))
        others = len(report["not_finite"]) - 1
        more = f", and {others} more tensors" if others else ""
        return (
            f"{report['path']} has NaN or Inf in {name} ({count} values){more}",
            "the file is damaged or its training failed; get another copy",
        )
    if unknown := report.get("architecture_unknown"):
        return unknown["message"], unknown["hint"]
    return None


def _show(report: dict[str, Any]) -> None:
    rows = [
        ("file", f"{report['path']}, {output.size(report['bytes'])}"),
        ("kind", report["kind"]),
        ("SHA-256", report["sha256"]),
        ("safe to open", "yes" if report["safe"] else "NO: it was not opened"),
    ]
    rows += [(finding["severity"], finding["message"]) for finding in report["findings"][:_MOST_SHOWN]]
    if architecture := report.get("architecture"):
        rows.append(("architecture", f"{architecture['name']}, by {architecture['source']}"))
        if architecture["alternatives"]:
            rows.append(("the same as", ", ".join(architecture["alternatives"][:_MOST_SHOWN])))
        rows.append(("classes", str(architecture["num_classes"])))
    if "tensors" in report:
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in report["dtypes"].items())
        rows.append(("tensors", f"{report['tensors']} ({dtypes}), {report['parameters']:,} values"))
        rows.append(("NaN or Inf", ", ".join(report["not_finite"]) or "none"))
        rows += list(report["metadata"].items())[:_MOST_SHOWN]
        rows += [(key, str(value)) for key, value in list(report["beside"].items())[:_MOST_SHOWN]]
        if report["left_out"]:
            rows.append(("not weights", ", ".join(report["left_out"][:_MOST_SHOWN])))
    output.facts(rows)
