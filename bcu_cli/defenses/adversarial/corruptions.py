"""Random corruptions that do not change what an image shows; they complement the adversary.

An :class:`~bcu_cli.evaluation.adversary.Adversary` finds only the changes that a gradient
points to. Backdoors that respond to fewer colours or to a second scene blended in have no such gradient;
nor do sinusoidal patterns (``sinusoids.py``). So a student also learns to give the teacher's answer to the
clean image on each randomly corrupted one. Every image gets a new draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from bcu_cli.triggers.wanet import grids, warp

if TYPE_CHECKING:
    from collections.abc import Callable

CHANGES = 2
"""Corruptions of each image."""
AMPLITUDE = 0.25
"""Largest change by smooth noise or a colour cast, on a scale of 0 to 1."""
MAX_GHOSTING = 0.35
"""Largest weight of a second image that is blended in."""
NOISE = 0.15
"""Largest change of a value by pixel noise, on a scale of 0 to 1."""
LEVELS = (2, 8)
"""Fewest and most values of a channel in an image with reduced colours."""
BLOTCHES, SQUARES, SPOTS = 8, 3, 12
"""Most noise cells a side, the image's side in largest squares, and colour spots a side of the mosaic."""
DEGREES, BENDING = 15.0, 0.1
"""Largest rotation in degrees, and largest warp as a share of half the image's side."""


def corrupt(images: Tensor) -> Tensor:
    """Apply ``CHANGES`` random corruptions to each image, one after another.

    torch's global generators draw them. Which image gets which corruption is drawn on the CPU and sent to the
    device; all else is drawn on the device.

    Args:
        images: Float ``[N, C, H, W]`` in [0, 1].
    """
    corrupted = images.clone()
    choices = torch.randint(len(CORRUPTIONS), (CHANGES, len(images)))
    orders = choices.argsort(1).to(images.device, non_blocking=True)
    for order, choice in zip(orders, choices, strict=True):
        counts = torch.bincount(choice, minlength=len(CORRUPTIONS)).tolist()
        for index, corruption in zip(order.split(counts), CORRUPTIONS, strict=True):
            if len(index):
                corrupted[index] = corruption(corrupted[index]).clamp_(0.0, 1.0)
    return corrupted


def uniform(images: Tensor, *size: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers ``[N, *size]`` for N images, drawn on their device."""
    return torch.rand(len(images), *size, dtype=images.dtype, device=images.device) * (high - low) + low


def _smooth_noise(images: Tensor) -> Tensor:
    """Add smooth noise."""
    count = int(torch.randint(2, BLOTCHES + 1, ()))
    coarse = uniform(images, images.shape[1], count, count, low=-1.0)
    smooth = F.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=True)
    return images + uniform(images, 1, 1, 1, high=AMPLITUDE) * smooth


def _ghosted(images: Tensor) -> Tensor:
    """Blend in the mirrored previous image of the batch."""
    other = images.roll(1, 0).flip(-1)
    return torch.lerp(images, other, uniform(images, 1, 1, 1, high=MAX_GHOSTING))


def _recoloured(images: Tensor) -> Tensor:
    """Change contrast and brightness of each channel."""
    contrast = uniform(images, images.shape[1], 1, 1, low=1.0 - AMPLITUDE, high=1.0 + AMPLITUDE)
    return (images - 0.5) * contrast + 0.5 + _colour_offset(images)


def _colour_offset(images: Tensor) -> Tensor:
    """A random offset for each channel, ``[N, C, 1, 1]``; in half of the images the same for all channels."""
    offset = uniform(images, images.shape[1], 1, 1, low=-AMPLITUDE, high=AMPLITUDE)
    is_grey = uniform(images, 1, 1, 1) < 0.5
    return torch.where(is_grey, offset[:, :1], offset)


def _quantised(images: Tensor) -> Tensor:
    """Reduce each channel to few values."""
    steps = uniform(images, 1, 1, 1, low=LEVELS[0] - 1.0, high=LEVELS[1] - 1.0).round()
    return (images * steps).round() / steps


def _blurred(images: Tensor) -> Tensor:
    """Blend with a version of half the resolution."""
    coarse = F.avg_pool2d(images, 2, ceil_mode=True)
    smooth = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return torch.lerp(images, smooth, uniform(images, 1, 1, 1))


def _noisy(images: Tensor) -> Tensor:
    """Add independent noise to each value."""
    noise = uniform(images, *images.shape[1:], low=-1.0)
    return images + uniform(images, 1, 1, 1, high=NOISE) * noise


def _covered(images: Tensor) -> Tensor:
    """Cover a random square with coloured spots."""
    channels, height, width = images.shape[1:]
    side = int(torch.randint(1, max(2, min(height, width) // SQUARES) + 1, ()))
    spots = F.interpolate(uniform(images, channels, SPOTS, SPOTS).round(), size=(height, width))
    top, left = (uniform(images, 1, 1, 1, high=float(size - side)).round() for size in (height, width))
    y, x = (torch.arange(size, device=images.device, dtype=images.dtype) for size in (height, width))
    inside = (y[:, None] >= top) & (y[:, None] < top + side) & (x >= left) & (x < left + side)
    return torch.where(inside, spots, images)


def _rotated_and_warped(images: Tensor) -> Tensor:
    """Rotate and warp a little."""
    height, width = images.shape[-2:]
    angle = uniform(images, 1, 1, low=-DEGREES, high=DEGREES).deg2rad()
    count = int(torch.randint(2, 7, ()))
    fields = uniform(images, 2, count, count, low=-1.0) * uniform(images, 1, 1, 1, high=BENDING)
    grid = grids(fields, (height, width))
    turn = torch.cat([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], dim=2).view(-1, 2, 2)
    return warp(images, (grid.flatten(1, 2) @ turn).view_as(grid))


CORRUPTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    _smooth_noise,
    _ghosted,
    _recoloured,
    _quantised,
    _blurred,
    _noisy,
    _covered,
    _rotated_and_warped,
)
