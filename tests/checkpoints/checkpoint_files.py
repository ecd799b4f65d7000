"""Small networks and hostile files that the tests of the checkpoints share."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from pathlib import Path


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(3), Block(4))
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(4, 5)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(x - self.mean)
        return self.fc(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def small_net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet().eval()


def script(module: nn.Module, path: Path, *, trace: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(module, torch.rand(2, 3, 8, 8)) if trace else torch.jit.script(module)
        torch.jit.save(made, str(path))
    return path


def save_safetensors(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def zip_of(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def rewritten(path: Path, changes: dict[str, bytes | None], *, to: Path) -> Path:
    """A copy of a zip with members replaced, added, or (None) removed; names without the top folder."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, data in changes.items():
        members[f"{root}/{name}"] = data if data is not None else b""
        if data is None:
            del members[f"{root}/{name}"]
    return zip_of(to, members)


class Evil:
    """Pickles to a call that would create a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.canary}",)


def evil_pickle(canary: Path, protocol: int = 2) -> bytes:
    return pickle.dumps({"state_dict": {}, "x": Evil(canary)}, protocol=protocol)


def saved_bytes(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()
