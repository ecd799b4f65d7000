"""Optimising inputs: the network stays as it is, and what is fed to it learns."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from bcu_cli.scan.base import Subject
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


@dataclass(frozen=True)
class Ascent:
    """How changes are looked for: numbers from ``-radius`` to ``radius``, steps, and images of each step."""

    radius: float
    steps: int
    batch: int


def leading(
    subject: Subject,
    images: Tensor,
    start: Tensor,
    under: Callable[[Tensor, Tensor], Tensor],
    how: Ascent,
) -> Tensor:
    """For each class the change that leads most images to it, by signed gradients of the margin.

    The first step is a quarter of the range, and they shrink to nothing.

    Args:
        subject: The network.
        images: Float ``[N, C, H, W]`` in [0, 1].
        start: The changes at first, ``[K, ...]``.
        under: Images ``[B, C, H, W]`` and changes ``[K, ...]`` to the images under each change,
            ``[K * B, C, H, W]``, those of one class together.
        how: The search.
    """
    generator, place = subject.generator(), subject.device.torch
    changes = start.to(place)
    wanted = torch.arange(len(start), device=place).repeat_interleave(how.batch)
    with frozen(subject.model):
        for step in range(how.steps):
            seen = images[torch.randint(len(images), (how.batch,), generator=generator)]
            changes.requires_grad_(True)
            answers = logits(subject.model, under(seen, changes), subject.device)
            (gradient,) = torch.autograd.grad(margin(answers, wanted).clamp(max=1.0).sum(), changes)
            size = 2.0 * how.radius * (1.0 - step / how.steps) / 4.0
            changes = (changes.detach() + size * gradient.sign()).clamp(-how.radius, how.radius)
            subject.report(step + 1, how.steps)
    return changes


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
