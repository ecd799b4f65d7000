"""Optimising inputs: the network stays as it is, and what is fed to it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from bcu_cli.training.devices import Device

BATCH = 256
"""Most images in one pass."""


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


@torch.no_grad()
def success_rates(
    model: nn.Module, images: Tensor, change: Callable[[Tensor, int], Tensor], classes: int, device: Device
) -> Tensor:
    """For each class, which share of the images of other classes, as the network sees them, is led to it.

    Args:
        model: Maps images in [0, 1] to logits.
        images: Float ``[N, C, H, W]`` in [0, 1].
        change: Images like these, and a class, to as many changed images.
        classes: K.
        device: Where, and in which precision.

    Returns:
        float32 ``[K]`` in [0, 1], on the CPU; 0 where all images are of the class, NaN where an answer is.
    """
    before = logits(model, images, device).argmax(1)
    rates = torch.zeros(classes)
    for target in range(classes):
        others = images[before != target]
        if len(others):
            answers = logits(model, change(others, target), device)
            led = (answers.argmax(1) == target).float().mean()
            rates[target] = led if answers.isfinite().all() else torch.nan
    return rates
