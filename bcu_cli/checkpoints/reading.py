"""Reading a model file of any format."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from . import pickles, safetensors_file, torchscript
from .checkpoint import Checkpoint, Description, Finding, Format, Outline
from .sniff import Kind, sniff
from .weights import Weights, flat_weights, no_weights, split_prefix
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

_OTHER_SUFFIXES = (
    ".onnx",
    ".pt2",
    ".h5",
    ".hdf5",
    ".keras",
    ".tflite",
    ".pb",
    ".gguf",
    ".npy",
    ".npz",
    ".joblib",
)
MODEL_SUFFIXES = frozenset([*_OTHER_SUFFIXES, *(one for suffixes in _SUFFIXES.values() for one in suffixes)])
"""How files are called that hold models, of the formats that bcu reads and of others."""

WHOLE_BYTES = 2**30
"""Up to this size a safetensors file is read whole to describe it, in about a second."""


def inspect_only(path: Path) -> Description:
    """Say what a file is and what is unsafe about it, without loading or running anything of it.

    Of a safetensors file of more than :data:`WHOLE_BYTES` only the header is read, and no hash made.

    Raises:
        CheckpointError: It is no model file that bcu reads, or it is damaged.
    """
    path = Path(path)
    kind = sniff(path)
    is_large = kind is Kind.SAFETENSORS and path.stat().st_size > WHOLE_BYTES
    return _describe(path, kind, hashed=not is_large)


def outline(description: Description) -> Outline:
    """Names, shapes and types of a safetensors file's tensors, by its header alone.

    Raises:
        CheckpointError: It is damaged or holds no tensors.
    """
    header = safetensors_file.read_header(description.path)
    if not header.tensors:
        raise no_weights(description.path)
    prefix = split_prefix(header.tensors)
    bare = {name.removeprefix(prefix): info for name, info in header.tensors.items()}
    return Outline(
        **_as_arguments(description),
        shapes={name: info.shape for name, info in bare.items()},
        dtypes={name: safetensors_file.torch_dtype(info) for name, info in bare.items()},
        metadata=header.metadata,
        prefix=prefix,
    )


def read(path: Path) -> Checkpoint:
    """Read a model file's weights.

    The code of a TorchScript archive is not run, so that code which :func:`load_script` would refuse is only
    a finding here.

    Raises:
        UnsafeFileError: Opening it the ordinary way could run somebody's program; it was not opened.
        CheckpointError: It is no model file that bcu reads, is damaged, or holds no weights.
    """
    path = Path(path)
    kind = sniff(path)
    description = _describe(path, kind, hashed=True)
    not_code = [item for item in description.findings if item.rule != torchscript.OPERATOR_RULE]
    pickles.refuse_if_unsafe(path, not_code)
    if description.format is Format.SAFETENSORS:
        weights = flat_weights(path, *safetensors_file.load(path))
    elif description.format is Format.TORCHSCRIPT:
        weights = Weights(tensors=torchscript.load(path))
    else:
        weights = pickles.load(path, kind)
    return Checkpoint(**_as_arguments(description), **_as_arguments(weights))


def _describe(path: Path, kind: Kind, *, hashed: bool) -> Description:
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
    return Description(
        path=path,
        format=_FORMATS[kind],
        kind=kind.value,
        sha256=sha256_of(path) if hashed else None,
        size=path.stat().st_size,
        findings=tuple(findings),
        operators=operators,
    )


def _renamed(path: Path, kind: Kind) -> Finding | None:
    suffix = path.suffix.lower()
    if suffix not in MODEL_SUFFIXES or suffix in _SUFFIXES[_FORMATS[kind]]:
        return None
    message = f"is called {suffix} and is in truth a {kind.value}"
    return Finding(rule="renamed-file", message=message, severity="note")


def _as_arguments(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}
