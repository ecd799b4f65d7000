"""Reading and inspecting model files of any format."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bcu_cli.checkpoints import hub, safetensors_file, shards
from bcu_cli.checkpoints.exported import exported_file
from bcu_cli.checkpoints.onnx import onnx_file
from bcu_cli.checkpoints.pickles import saved
from bcu_cli.checkpoints.pickles.weights import Weights, flat_weights, no_weights, split_prefix
from bcu_cli.checkpoints.torchscript import script_file
from bcu_cli.errors import CheckpointError
from bcu_cli.words import number_of

from .checkpoint import Checkpoint, Description, Finding, Format, Omission, Outline
from .sniff import Kind, sniff
from .suffixes import MODEL_SUFFIXES, SUFFIXES
from .writing import sha256_of

_FORMATS = {
    Kind.SAFETENSORS: Format.SAFETENSORS,
    Kind.TORCHSCRIPT: Format.TORCHSCRIPT,
    Kind.EXPORTED: Format.EXPORTED,
    Kind.ONNX: Format.ONNX,
    Kind.ZIP_PICKLE: Format.PICKLE,
    Kind.LEGACY_PICKLE: Format.PICKLE,
    Kind.PLAIN_PICKLE: Format.PICKLE,
}

_HUB_NAMES = (  # file names of timm and transformers on the hub, in order of preference
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WHOLE_BYTES = 2**30
"""Largest safetensors file, in bytes, that is read completely to describe it; that takes about a second."""


def inspect_only(path: Path) -> Description:
    """Describe a file and find what is unsafe about it, without loading or running anything in it.

    Only the header of a safetensors file above :data:`WHOLE_BYTES` is read, and no hash is computed. A folder
    stands for the model in it (:func:`model_in`), and an index for all files that it lists.

    Raises:
        CheckpointError: The file is no model file that bcu reads, or it is damaged.
    """
    path = model_in(path)
    kind = sniff(path)
    is_large = kind is Kind.SAFETENSORS and path.stat().st_size > WHOLE_BYTES
    return _describe(path, kind, hashed=not is_large)


def outline(description: Description) -> Outline:
    """Read the names, shapes and types of the tensors from the header of a safetensors file.

    Raises:
        CheckpointError: The file is damaged or holds no tensors.
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


def read(path: Path, *, weights_key: str | None = None) -> Checkpoint:
    """Read the weights of a model file.

    TorchScript code and ONNX graphs are not run here. So operators in them that :func:`open_script` and
    :func:`load_graph` would refuse are only findings. A folder stands for the model in it, and an index for
    all files that it lists.

    Args:
        path: The file, the folder, or a reference to the hub.
        weights_key: Path of the table in a pickle that holds the weights, its keys joined with ``/``; by
            default the table is chosen automatically.

    Raises:
        UnsafeFileError: An ordinary loader could run code from the file; it was not opened.
        CheckpointError: The file is no model file that bcu reads, is damaged, or holds no weights.
    """
    path = model_in(path)
    kind = sniff(path)
    description = _describe(path, kind, hashed=True)
    code = (script_file.OPERATOR_RULE, onnx_file.OPERATOR_RULE)
    not_code = [item for item in description.findings if item.rule not in code]
    saved.refuse_if_unsafe(path, not_code)
    return Checkpoint(**_as_arguments(description) | _as_arguments(_weights(path, kind, weights_key)))


def model_in(path: Path) -> Path:
    """The model file that a path stands for.

    A file stands for itself, and a folder for the model file in it. A reference to the hub
    (``hf-hub:owner/name``) is downloaded first.

    Raises:
        CheckpointError: The folder holds no model file or several, or the download fails.
    """
    path = hub.fetch_model(path) if hub.is_reference(path) else Path(path)
    if not path.is_dir():
        return path
    for name in _HUB_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(
        file for file in path.iterdir() if file.suffix.lower() in MODEL_SUFFIXES and file.is_file()
    )
    if len(found) == 1:
        return found[0]
    what = f"holds {len(found)} model files" if found else "is a folder without a model file"
    raise CheckpointError(f"{path} {what}", "name the model file itself", rule="not-a-model")


def _weights(path: Path, kind: Kind, key: str | None = None) -> Weights:
    if key is not None and kind not in {Kind.ZIP_PICKLE, Kind.LEGACY_PICKLE, Kind.PLAIN_PICKLE}:
        message = f"{path} holds only one table of weights, as every {kind.value} does"
        raise CheckpointError(message, "leave --weights-key out", rule="no-weights")
    if kind is Kind.SAFETENSORS:
        return flat_weights(path, *safetensors_file.load(path))
    if kind is Kind.TORCHSCRIPT:
        why = "only torch's lite interpreter reads it"
        omitted = tuple(Omission(name=name, why=why) for name in script_file.left_out(path))
        return Weights(tensors=script_file.load(path), omitted=omitted)
    if kind is Kind.EXPORTED:
        return flat_weights(path, exported_file.load(path), {})
    if kind is Kind.ONNX:
        return flat_weights(path, onnx_file.load(path), onnx_file.inspect_model(path).metadata)
    if kind is not Kind.SHARDS:
        return saved.load(path, kind, key)
    tensors: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for part, promised in shards.read_index(path).items():
        weights = _weights(part, sniff(part))
        named = {weights.prefix + name: tensor for name, tensor in weights.tensors.items()}
        shards.check_part(path, part, promised, named)
        tensors |= named
        metadata |= weights.metadata
    return flat_weights(path, tensors, metadata)


def _describe(path: Path, kind: Kind, *, hashed: bool) -> Description:
    if kind is Kind.SHARDS:
        return _describe_shards(path, hashed=hashed)
    findings: list[Finding] = []
    operators: tuple[str, ...] = ()
    files: tuple[Path, ...] = (path,)
    if kind is Kind.SAFETENSORS:
        safetensors_file.read_header(path)
    elif kind is Kind.TORCHSCRIPT:
        findings, operators = script_file.find_faults(path)
    elif kind is Kind.EXPORTED:
        findings, operators = exported_file.find_faults(path)
    elif kind is Kind.ONNX:
        model = onnx_file.inspect_model(path)
        findings, operators, files = model.findings, model.operators, (path, *model.files)
    else:
        findings = saved.find_faults(path, kind)
        if kind is Kind.PLAIN_PICKLE and all(finding.rule == "pickle-object" for finding in findings):
            saved.refuse_other_library(path, findings)
    if (renamed := _renamed(path, kind)) is not None:
        findings.append(renamed)
    return Description(
        path=path,
        format=_FORMATS[kind],
        kind=kind.value,
        sha256=_hash([sha256_of(file) for file in files]) if hashed else None,
        size=sum(file.stat().st_size for file in files),
        findings=tuple(findings),
        operators=operators,
        parts=files[1:],
    )


def _describe_shards(path: Path, *, hashed: bool) -> Description:
    """Describe an index and all files that it lists as one model."""
    parts = []
    for part in shards.read_index(path):
        kind = sniff(part)
        if kind in {Kind.SHARDS, Kind.TORCHSCRIPT, Kind.EXPORTED, Kind.ONNX}:
            message = f"the index {path} names {part.name}, which is no file of weights ({kind.value})"
            raise CheckpointError(message, "download the whole folder again", rule="shards")
        parts.append(_describe(part, kind, hashed=hashed))
    findings = [
        replace(finding, message=f"{part.path.name}: {finding.message}")
        for part in parts
        for finding in part.findings
    ]
    hashes = [sha256_of(path), *(str(part.sha256) for part in parts)]
    return Description(
        path=path,
        format=parts[0].format,
        kind=f"{parts[0].kind} in {number_of(len(parts), 'file')}",
        sha256=_hash(hashes) if hashed else None,
        size=path.stat().st_size + sum(part.size for part in parts),
        findings=tuple(findings),
        parts=tuple(part.path for part in parts),
    )


def _hash(hashes: list[str]) -> str:
    """The hash of a model: that of its only file, or the hash of the hashes of all its files."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _renamed(path: Path, kind: Kind) -> Finding | None:
    suffix = path.suffix.lower()
    if suffix not in MODEL_SUFFIXES or suffix in SUFFIXES[_FORMATS[kind]]:
        return None
    message = f"has the suffix {suffix}, but its content is a {kind.value}"
    return Finding(rule="renamed-file", message=message, severity="note")


def _as_arguments(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}
