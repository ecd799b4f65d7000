"""Writing of a cleansed network to a file that replaces the original."""

from __future__ import annotations

import copy
import io
import json
import warnings
from typing import TYPE_CHECKING

import torch
from torch.jit import TracingCheckError  # type: ignore[attr-defined]

from bcu_cli.checkpoints import Format, read, write, write_bytes, write_torchscript
from bcu_cli.errors import CheckpointError, OutputError, TrainingError
from bcu_cli.models.architectures.index import counted
from bcu_cli.models.configs.claims import CLASS_NAMES
from bcu_cli.models.configs.transformers_config import is_config
from bcu_cli.models.embedded.embedded_network import EmbeddedNetwork
from bcu_cli.models.embedded.script import ScriptNetwork
from bcu_cli.models.metadata import metadata_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from bcu_cli.models.classifier import Classifier
    from bcu_cli.models.loading import Loaded

_ROUNDING = {torch.float16: 5e-3}
"""Share of the largest logit by which a trace may differ; 1e-4 for types that are not listed."""
CLEANSED_FROM = "bcu.cleansed_from"
"""Metadata key: SHA-256 of the file that a cleansed model was made from."""


def as_stored(original: Loaded, cleansed: Classifier, format: Format) -> tuple[str, ...]:  # noqa: A002
    """Round a classifier's weights in place to the values that its file will hold.

    Numbers beyond the range of the original's types become the largest that these have.

    Args:
        original: The model that was cleansed.
        cleansed: The cleansed network, which differs in its weights.
        format: The format of the file.

    Returns:
        The names of the tensors with numbers beyond the range, without the step counters of BatchNorm.

    Raises:
        TrainingError: There is NaN or infinity in a tensor.
    """
    state = original.as_named_in_file(cleansed.network.state_dict())
    for name, tensor in state.items():
        if counted(name) and not tensor.isfinite().all():
            raise TrainingError(
                f"the training ended with NaN or Inf in {name}: nothing was written",
                "lower --learning-rate, or leave it at its default",
            )
    beyond = []
    with torch.no_grad():
        for name, tensor in state.items():
            stored = _stored(tensor, _stored_type(name, tensor, original, format))
            if (
                counted(name)
                and stored.dtype.is_floating_point
                and _largest_of(tensor) > _largest(stored.dtype)
            ):
                beyond.append(name)
            tensor.copy_(stored)
    return tuple(beyond)


def write_like(original: Loaded, cleansed: Classifier, path: Path, format: Format) -> str:  # noqa: A002
    """Write a cleansed classifier to a file that replaces the original.

    Tensors keep their names, shapes and types. A TorchScript file keeps its code; only the numbers in its
    tensors change. A network that came in another format is traced for TorchScript.

    Args:
        original: The model that was cleansed.
        cleansed: The cleansed network, which differs in its weights.
        path: The file to write.
        format: The format of the file.

    Returns:
        The SHA-256 of the file.

    Raises:
        OutputError: The file cannot be written, the network cannot be stored in that format, or the file
            reads back differently. Then ``path`` is left as it was.
    """
    checkpoint = original.checkpoint
    named = original.as_named_in_file(cleansed.network.state_dict())
    state = {name: tensor.detach().cpu() for name, tensor in named.items()}

    def check(unfinished: Path) -> None:
        _require_same(unfinished, state, path)

    if format is Format.TORCHSCRIPT and checkpoint.format is Format.TORCHSCRIPT:
        prefix = "" if isinstance(cleansed.network, ScriptNetwork) else checkpoint.prefix
        stored = {prefix + name: tensor for name, tensor in state.items()}
        return write_torchscript(path, stored, like=checkpoint, check=check)
    if format is Format.TORCHSCRIPT:
        return write_bytes(path, _traced(original, cleansed, path), check=check)
    if isinstance(cleansed.network, EmbeddedNetwork):
        what = f"only its own code or graph tells how to run {checkpoint.path}, and {format} has none"
        raise OutputError(f"{path} cannot be written: {what}", "--format torchscript")
    names = checkpoint.tensors
    tensors = {name: _cast_like(state[name], tensor) for name, tensor in names.items() if name in state}
    if lost := [name for name in names if name not in state]:
        raise OutputError(
            f"the network has no tensor {lost[0]}, which the original has", "report this: it is a bug"
        )
    metadata = _metadata(original)
    return write(path, tensors, like=checkpoint, format=format, metadata=metadata, check=check)


def _stored_type(
    name: str,
    tensor: Tensor,
    original: Loaded,
    format: Format,  # noqa: A002
) -> torch.dtype:
    """The type of a tensor in the file: that of the original file, or of the network if it is traced."""
    traced = format is Format.TORCHSCRIPT and original.checkpoint.format is not Format.TORCHSCRIPT
    held = original.checkpoint.tensors.get(name)
    return tensor.dtype if traced or held is None else held.dtype


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor to another type, with its values clamped to the range of that type."""
    if tensor.is_complex() or not dtype.is_floating_point or dtype == tensor.dtype:
        return tensor.to(dtype)
    return tensor.clamp(-_largest(dtype), _largest(dtype)).to(dtype)


def _largest_of(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max if dtype.is_floating_point else float("inf")


def _cast_like(tensor: Tensor, original: Tensor) -> Tensor:
    return _stored(tensor, original.dtype).reshape(original.shape).contiguous()


def _require_same(unfinished: Path, state: Mapping[str, Tensor], path: Path) -> None:
    """Read a written file back, and compare it with the network that was evaluated."""
    hint = "what was judged is not what would be there; try another disk, and --resume"
    try:
        written = read(unfinished)
    except CheckpointError as error:
        reason = error.message.replace(str(unfinished), "it")
        raise OutputError(f"{path} was not written: read again, {reason}", hint) from error
    for name, tensor in written.tensors.items():
        if counted(name) and name in state and not _equal(tensor, state[name]):
            raise OutputError(f"{path} was not written: read again, it has other numbers in {name}", hint)


def _equal(written: Tensor, judged: Tensor) -> bool:
    return torch.equal(written.to(judged.dtype).reshape(judged.shape), judged)


def _metadata(original: Loaded) -> dict[str, str]:
    checkpoint = original.checkpoint
    names = original.classes if original.names_are_certain else ()
    described = metadata_for(original.architecture, original.preprocessing, names)
    if original.classes and not names:  # they stay what others say: folders may have other names
        described[CLASS_NAMES] = json.dumps(original.classes)
    if is_config(original.architecture.name):
        described["format"] = "pt"  # transformers opens no safetensors file without it
    return described | {CLEANSED_FROM: json.dumps(checkpoint.sha256)}


class _CastingNetwork(torch.nn.Module):
    """A network whose input and output have the data type of the original."""

    def __init__(self, network: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.float())
        return logits.to(self.dtype)


def _traced(original: Loaded, cleansed: Classifier, path: Path) -> bytes:
    """Trace a network, and return the bytes of a TorchScript file."""
    network: torch.nn.Module = copy.deepcopy(cleansed.network).cpu().eval()
    group = getattr(network, "group", None)
    if original.input_dtype != torch.float32:
        network = _CastingNetwork(network, original.input_dtype)
    size = cleansed.preprocessing.input_size
    images = torch.rand(group or 3, *size, generator=torch.Generator().manual_seed(0))
    images = images.to(original.input_dtype)
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecation, and of shapes that become constants
            traced = torch.jit.trace(network, images[: group or 2])  # type: ignore[no-untyped-call]
            torch.jit.save(traced, buffer)
            same = all(_are_alike(traced, network, images[:n]) for n in ([group] if group else [1, 2, 3]))
    except (RuntimeError, TracingCheckError) as error:
        reason = str(error).strip().splitlines()[0]
        raise _not_traced(original, path, reason) from error
    if not same:
        raise _not_traced(original, path, "its trace gives other logits for another number of images")
    return buffer.getvalue()


def _are_alike(traced: torch.nn.Module, network: torch.nn.Module, images: Tensor) -> bool:
    found, expected = traced(images), network(images)
    pairs = zip(*(one if isinstance(one, tuple) else (one,) for one in (found, expected)), strict=True)
    return all(_are_close(ours, theirs, _ROUNDING.get(images.dtype, 1e-4)) for ours, theirs in pairs)


def _are_close(found: Tensor, expected: Tensor, share: float) -> bool:
    """Whether outputs differ by no more than a share of the largest value."""
    return torch.allclose(found, expected, rtol=0.0, atol=share * float(expected.abs().max()))


def _not_traced(original: Loaded, path: Path, why: str) -> OutputError:
    is_own = original.architecture.name in set(Format)
    hint = "nothing else can be written of this file" if is_own else "--format safetensors"
    return OutputError(f"{path} cannot be written as TorchScript: {why}", hint)
