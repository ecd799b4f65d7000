"""Optimising inputs: the network stays as it is, and what is fed to it learns."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from bcu_cli.training.devices import Device

BATCH = 256
"""Most images in one pass."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradient is computed for the parameters meanwhile."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def logits(model: nn.Module, images: Tensor, device: Device) -> Tensor:
    """float32 logits ``[N, K]`` of float images in [0, 1], in the device's precision, in passes of a few."""
    passes = []
    for part in torch.split(images, BATCH):
        with device.autocast():
            passes.append(model(part))
    return torch.cat(passes).float()


def margin(answers: Tensor, wanted: Tensor) -> Tensor:
    """How far the wanted class lies above the best other one, ``[N]``.

    Args:
        answers: Logits ``[N, K]``.
        wanted: Classes, int64 ``[N]``.
    """
    own = answers.gather(1, wanted[:, None])[:, 0]
    marked = F.one_hot(wanted, answers.shape[1]).bool()
    return own - answers.masked_fill(marked, float("-inf")).amax(1)


def as_floats(images: Tensor, device: Device) -> Tensor:
    """uint8 images as floats in [0, 1] on the device."""
    return images.to(device.torch).float() / 255.0


def divided(images: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most so many images to learn on and as many others to judge by, drawn at random.

    Args:
        images: ``[N, C, H, W]``; N at least 2.
        most: Of each.
        seed: Decides which.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    half = min(most, len(images) // 2)
    return images[order[:half]], images[order[half : 2 * half]]
