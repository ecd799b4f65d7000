"""TorchScript networks for tests: written by torch, read and evaluated by bcu."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.checkpoints import open_script, read
from bcu_cli.models.embedded.script import ScriptNetwork

if TYPE_CHECKING:
    from torch import Tensor, nn


def torchscript_of(network: nn.Module, example: Tensor | None = None) -> bytes:
    """The file that torch writes of a network: traced where there is an example, scripted where not."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if example is None:
            made = torch.jit.script(network)
        else:
            made = torch.jit.trace(network, example, check_trace=False)
        torch.jit.save(made, buffer)
    return buffer.getvalue()


def loaded_by_torch(data: bytes) -> torch.jit.ScriptModule:
    """The network of a file as torch's own interpreter runs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(io.BytesIO(data))


def evaluated(data: bytes, **options: Any) -> ScriptNetwork:
    """The network of a file as bcu evaluates it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.pt")
        path.write_bytes(data)
        return ScriptNetwork(open_script(read(path)), **options)


def script_network(network: nn.Module, example: Tensor | None = None) -> ScriptNetwork:
    """A network sent through a TorchScript file."""
    return evaluated(torchscript_of(network, example))
