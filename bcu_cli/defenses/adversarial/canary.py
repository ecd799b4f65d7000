"""Canaries: known backdoors in a copy of the suspicious network, which a cleansing must remove.

A user has no trigger to test a cleansed network with. So a copy is trained to have known backdoors, and is
cleansed in the same way: where they remain, the cleansing is too weak for this network. Canaries are easier
to remove than the attacker's backdoor, since they were trained late and briefly.
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

NAMES = ("patch", "blend", "sinusoid", "warp")
PATCH_SIDES = 6
"""Shorter side of the image, in sides of the patch."""
ALPHA = 0.2
"""Weight of the image or the sinusoidal pattern that is blended in."""
CYCLES = (3, 9)
"""Range of the cycles of the sinusoidal pattern from side to side; the upper end is excluded."""
STRENGTH = 3.0
"""Strength of the warp in WaNet's unit: its control points move by 1.5 pixels of 32 on average."""


def draw(shape: tuple[int, int, int], seed: int) -> tuple[Trigger, ...]:
    """Draw a random patch, a smooth image and a sinusoidal pattern to blend in, and a warp.

    Args:
        shape: Shape of the images, (C, H, W).
        seed: Seed of the draw.

    Returns:
        One trigger for each of ``NAMES``.
    """
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
    pattern = 0.5 + 0.5 * torch.sin(2.0 * pi * (across * x + down * y[:, None]))
    everywhere = torch.ones(1, height, width)
    return (
        Custom(picture=colours, mask=mask),
        Custom(picture=smooth, mask=everywhere, mode="blend", alpha=ALPHA),
        Custom(picture=pattern.expand(channels, -1, -1), mask=everywhere, mode="blend", alpha=ALPHA),
        WaNet(field=WaNet.for_images(shape, seed=seed + 1).field, strength=STRENGTH),
    )


def teaching(
    network: nn.Module, original: nn.Module, triggers: Sequence[Trigger], targets: Sequence[int]
) -> Objective:
    """The objective that plants canaries: the original's answers on clean images, targets on triggered ones.

    Args:
        network: The copy, which maps images in [0, 1] to logits ``[N, K]``.
        original: The network that it is a copy of.
        triggers: The canaries.
        targets: Target class of each canary.
    """

    def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
        with torch.no_grad():
            expected = original(views)
        parts = [
            trigger.apply(part)
            for trigger, part in zip(triggers, views.tensor_split(len(triggers)), strict=True)
        ]
        pairs = zip(parts, targets, strict=True)
        labels = torch.cat([torch.full((len(part),), target, device=part.device) for part, target in pairs])
        both = torch.cat([views, *parts]).contiguous(memory_format=torch.channels_last)
        clean, triggered = network(both).split(len(views))
        backdoor_loss = F.cross_entropy(triggered.float(), labels)
        return distillation_loss(clean, expected, 1.0) + backdoor_loss

    return objective
