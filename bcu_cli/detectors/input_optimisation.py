"""Helpers for the optimisation of inputs to a fixed network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from bcu_cli.detectors.base import EXAMPLES, LARGE, MOST_VALUES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from bcu_cli.training.devices import Device

BATCH = 256
"""Most images in one forward pass."""


def batches(images: Tensor) -> tuple[Tensor, ...]:
    """Images ``[N, C, H, W]`` in parts that fit into one forward pass."""
    return torch.split(images, max(1, min(BATCH, MOST_VALUES // images[0].numel())))


def logits(model: nn.Module, images: Tensor, device: Device) -> Tensor:
    """Logits, float32 ``[N, K]``, of float images in [0, 1], in the device's precision."""
    if images.shape[2] * images.shape[3] > LARGE:  # convolutions are faster then
        images = images.contiguous(memory_format=torch.channels_last)
    passes = []
    for part in batches(images):
        with device.autocast():
            passes.append(model(part))
    return torch.cat(passes).float()


def margin(answers: Tensor, targets: Tensor) -> Tensor:
    """The logit of the target class minus the highest other one, ``[N]``.

    Args:
        answers: Logits, ``[N, K]``.
        targets: Target classes, int64 ``[N]``.
    """
    target_logits = answers.gather(1, targets[:, None])[:, 0]
    is_target = F.one_hot(targets, answers.shape[1]).bool()
    return target_logits - answers.masked_fill(is_target, float("-inf")).amax(1)


@torch.no_grad()
def of_other_classes(model: nn.Module, images: Tensor, target: int, device: Device) -> Tensor:
    """The first ``EXAMPLES`` images that the network predicts as another class; of all, if there are none.

    Args:
        model: Maps images in [0, 1] to logits.
        images: Float ``[N, C, H, W]`` in [0, 1].
        target: Target class.
        device: Device and precision.
    """
    others = images[logits(model, images, device).argmax(1) != target]
    return (others if len(others) else images)[:EXAMPLES]


@torch.no_grad()
def success_rates(
    model: nn.Module,
    images: Tensor,
    change: Callable[[Tensor, int], Tensor],
    classes: Sequence[int],
    device: Device,
) -> Tensor:
    """Success of a change for each class, on the images that the network predicts as another class.

    Args:
        model: Maps images in [0, 1] to logits.
        images: Float ``[N, C, H, W]`` in [0, 1].
        change: Maps such images and the index of a class in ``classes`` to changed images.
        classes: The S classes.
        device: Device and precision.

    Returns:
        Shares, float32 ``[S]`` in [0, 1], on the CPU. A share is 0 where all images are predicted as the
        class, and NaN where a logit is not finite.
    """
    before = logits(model, images, device).argmax(1)
    rates = torch.zeros(len(classes))
    for place, target in enumerate(classes):
        others = images[before != target]
        if len(others):
            answers = logits(model, change(others, place), device)
            success = (answers.argmax(1) == target).float().mean()
            rates[place] = success if answers.isfinite().all() else torch.nan
    return rates
