"""Reading a model file of any format."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from . import pickles, safetensors_file, torchscript
from .checkpoint import Checkpoint, Description, Finding, Format
from .sniff import Kind, sniff
from .weights import Weights, flat_weights
from .writing import sha256_of

_FORMATS = {
    Kind.SAFETENSORS: Format.SAFETENSORS,
    Kind.TORCHSCRIPT: Format.TORCHSCRIPT,
    Kind.ZIP_PICKLE: Format.PICKLE,
    Kind.LEGACY_PICKLE: Format.PICKLE,
    Kind.PLAIN_PICKLE: Format.PICKLE,
}
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".tar", ".ckpt", ".pkl", ".pickle")
_SUFFIXES = {
    Format.SAFETENSORS: (".safetensors",),
    Format.PICKLE: _PICKLE_SUFFIXES,
    Format.TORCHSCRIPT: (*_PICKLE_SUFFIXES, ".torchscript", ".ts", ".jit"),
}


def inspect_only(path: Path) -> Description:
    """Say what a file is and what is unsafe about it, without loading or running anything of it.

    Raises:
        CheckpointError: It is no model file that bcu reads, or it is damaged.
    """
    return _describe(Path(path))[0]


def read(path: Path) -> Checkpoint:
    """Read a model file's weights.

    The code of a TorchScript archive is not run, so that code which :func:`load_script` would refuse is only
    a finding here.

    Raises:
        UnsafeFileError: Opening it the ordinary way could run somebody's program; it was not opened.
        CheckpointError: It is no model file that bcu reads, is damaged, or holds no weights.
    """
    description, kind = _describe(Path(path))
    path = description.path
    not_code = [item for item in description.findings if item.rule != torchscript.OPERATOR_RULE]
    pickles.refuse_if_unsafe(path, not_code)
    if description.format is Format.SAFETENSORS:
        weights = flat_weights(path, *safetensors_file.load(path))
    elif description.format is Format.TORCHSCRIPT:
        weights = Weights(tensors=torchscript.load(path))
    else:
        weights = pickles.load(path, kind)
    return Checkpoint(**_as_arguments(description), **_as_arguments(weights))


def _describe(path: Path) -> tuple[Description, Kind]:
    kind = sniff(path)
    findings: list[Finding] = []
    operators: tuple[str, ...] = ()
    if kind is Kind.SAFETENSORS:
        safetensors_file.read_header(path)
    elif kind is Kind.TORCHSCRIPT:
        findings, operators = torchscript.find_faults(path)
    else:
        findings = pickles.find_faults(path, kind)
        if all(finding.rule == "pickle-object" for finding in findings):
            pickles.refuse_other_library(path, findings)
    if (renamed := _renamed(path, kind)) is not None:
        findings.append(renamed)
    description = Description(
        path=path,
        format=_FORMATS[kind],
        kind=kind.value,
        sha256=sha256_of(path),
        size=path.stat().st_size,
        findings=tuple(findings),
        operators=operators,
    )
    return description, kind


def _renamed(path: Path, kind: Kind) -> Finding | None:
    suffix = path.suffix.lower()
    known = {one for suffixes in _SUFFIXES.values() for one in suffixes}
    if suffix not in known or suffix in _SUFFIXES[_FORMATS[kind]]:
        return None
    message = f"is called {suffix} and is in truth a {kind.value}"
    return Finding(rule="renamed-file", message=message, severity="note")


def _as_arguments(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}
