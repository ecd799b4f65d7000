"""Canaries: backdoors of our own in a copy of the suspicious network, which a cleansing must remove.

A user has no trigger to test a cleansed network with. A copy that was taught triggers that nobody else
knows is cleansed in the same way: where they stay, the cleansing is too weak for this network. They die more
easily than what the network grew up with: they were taught late and briefly, and the teacher of that
cleansing is the original, which does not know them.
"""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from bcu_cli.defenses.bcu import distillation_loss
from bcu_cli.triggers.custom import Custom
from bcu_cli.triggers.wanet import WaNet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from bcu_cli.training.loop import Objective
    from bcu_cli.triggers.base import Trigger

NAMES = ("patch", "blend", "wave", "warp")
PATCH_SIDES = 6
"""The patch has a sixth of the image's shorter side."""
ALPHA = 0.2
"""Of the image, or of the wave, that is blended in."""
CYCLES = (3, 9)
"""Of the wave, from side to side: fewest, and the first that is too many."""
STRENGTH = 3.0
"""Of the warp, in WaNet's unit: one and a half pixels of 32, in the mean of its control points."""


def draw(shape: tuple[int, int, int], seed: int) -> tuple[Trigger, ...]:
    """A patch of random colours, a smooth image and a wave blended in, a warp; for images ``(C, H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    side = max(2, min(height, width) // PATCH_SIDES)
    top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in (height, width))
    mask = torch.zeros(1, height, width)
    mask[:, top : top + side, left : left + side] = 1.0
    colours = torch.rand(channels, height, width, generator=generator).round()
    coarse = torch.rand(1, channels, 5, 5, generator=generator).round()
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)[0]
    across, down = (float(torch.randint(*CYCLES, (), generator=generator)) for _ in range(2))
    x, y = (torch.arange(size) / size for size in (width, height))
    wave = 0.5 + 0.5 * torch.sin(2.0 * pi * (across * x + down * y[:, None]))
    everywhere = torch.ones(1, height, width)
    return (
        Custom(picture=colours, mask=mask),
        Custom(picture=smooth, mask=everywhere, mode="blend", alpha=ALPHA),
        Custom(picture=wave.expand(channels, -1, -1), mask=everywhere, mode="blend", alpha=ALPHA),
        WaNet(field=WaNet.for_images(shape, seed=seed + 1).field, strength=STRENGTH),
    )


def teaching(
    network: nn.Module, original: nn.Module, triggers: Sequence[Trigger], targets: Sequence[int]
) -> Objective:
    """Answer as the original does, but to each trigger with its target.

    Args:
        network: The copy, images in [0, 1] to logits ``[N, K]``.
        original: What it is a copy of.
        triggers: The canaries.
        targets: The class that each leads to.
    """

    def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
        with torch.no_grad():
            usual = original(views)
        parts = [
            trigger.apply(part)
            for trigger, part in zip(triggers, views.tensor_split(len(triggers)), strict=True)
        ]
        wanted = [torch.full((len(part),), t) for part, t in zip(parts, targets, strict=True)]
        both = torch.cat([views, *parts]).contiguous(memory_format=torch.channels_last)
        clean, triggered = network(both).split(len(views))
        taught = F.cross_entropy(triggered.float(), torch.cat(wanted).to(triggered.device))
        return distillation_loss(clean, usual, 1.0) + taught

    return objective
