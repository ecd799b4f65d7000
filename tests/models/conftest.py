"""Checkpoints made in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from bcu_cli.checkpoints import Checkpoint, Format

if TYPE_CHECKING:
    from pathlib import Path

MakeCheckpoint = Callable[..., Checkpoint]


@pytest.fixture
def checkpoint_of(tmp_path: Path) -> MakeCheckpoint:
    """A function that wraps tensors (or a network's) as if they had been read from a file."""

    def make(tensors: dict[str, Tensor] | torch.nn.Module, **fields: Any) -> Checkpoint:
        if isinstance(tensors, torch.nn.Module):
            tensors = tensors.state_dict()
        settings = {"format": Format.SAFETENSORS, "kind": "test", "sha256": "", "size": 0} | fields
        return Checkpoint(path=tmp_path / "model.bin", tensors=dict(tensors), **settings)

    return make
