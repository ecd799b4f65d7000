"""A cleansed network back into a file that takes the original's place."""

from __future__ import annotations

import io
import json
import warnings
from typing import TYPE_CHECKING

import torch
from torch.jit import TracingCheckError  # type: ignore[attr-defined]

from bcu_cli.checkpoints import Format, write, write_bytes, write_torchscript
from bcu_cli.errors import OutputError
from bcu_cli.models.metadata import class_names, metadata_for
from bcu_cli.models.script import ScriptNetwork

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from bcu_cli.models.classifier import Classifier
    from bcu_cli.models.loading import Loaded

CLEANSED_FROM = "bcu.cleansed_from"
"""Metadata key: SHA-256 of the file that a cleansed model was made from."""


def write_like(original: Loaded, cleansed: Classifier, path: Path, format: Format) -> str:  # noqa: A002
    """Write a cleansed classifier with the tensor names, shapes and types of the original.

    Args:
        original: What was cleansed.
        cleansed: The same network with other weights.
        path: The file.
        format: Its format. As TorchScript the network is traced, and nothing of the original's code is kept.
            Where that code is all that is known of the network, the original's archive is written again with
            other numbers in its tensors.

    Returns:
        The SHA-256 of the file.

    Raises:
        OutputError: The file cannot be written, or the network cannot be put into that format.
    """
    network = cleansed.network.cpu().eval()
    state = network.state_dict()
    if isinstance(network, ScriptNetwork) and format is Format.TORCHSCRIPT:
        return write_torchscript(path, state, like=original.checkpoint)
    if format is Format.TORCHSCRIPT:
        return write_bytes(path, _traced(network, cleansed.preprocessing.input_size, path))
    names = original.checkpoint.tensors
    tensors = {name: _like(state[name], tensor) for name, tensor in names.items() if name in state}
    if lost := [name for name in names if name not in state]:
        raise OutputError(
            f"the network has no tensor {lost[0]}, which the original has", "report this: it is a bug"
        )
    return write(path, tensors, like=original.checkpoint, format=format, metadata=_metadata(original))


def _like(tensor: Tensor, original: Tensor) -> Tensor:
    return tensor.to(original.dtype).reshape(original.shape).contiguous()


def _metadata(original: Loaded) -> dict[str, str]:
    checkpoint = original.checkpoint
    classes = class_names(checkpoint.metadata, original.architecture.num_classes)
    described = metadata_for(original.architecture, original.classifier.preprocessing, classes)
    return described | {CLEANSED_FROM: json.dumps(checkpoint.sha256)}


def _traced(network: torch.nn.Module, input_size: tuple[int, int, int], path: Path) -> bytes:
    """A network of bcu's or a library's own code as the bytes of a TorchScript file."""
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its age, and of shapes that become fixed, as they shall
            traced = torch.jit.trace(network, torch.zeros(2, *input_size))  # type: ignore[no-untyped-call]
            torch.jit.save(traced, buffer)
    except (RuntimeError, TracingCheckError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OutputError(
            f"{path} cannot be written as TorchScript: {reason}", "--format safetensors"
        ) from error
    return buffer.getvalue()
