"""Changes at random, of the kinds that do not change what is on an image: the other half of the adversary.

An :class:`~bcu_cli.defenses.adversary.Adversary` finds what leads images astray only where a gradient shows
the way. A backdoor that answers to fewer colours or to another scene shining through shows none (nor does one
that answers to a wave, see ``waves.py``). So a student is also taught that such changes mean nothing: to
answer each changed image as the teacher answers the unchanged one. The changes are drawn anew for each image,
never the same for two.
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
"""Of each image."""
AMPLITUDE = 0.25
"""Of blotches and of a tone: the most that they add, on a scale of 0 to 1."""
SHINING = 0.35
"""Most of another image that shines through."""
NOISE = 0.15
LEVELS = (2, 8)
"""Fewest and most values of a channel that an image with few colours has."""
BLOTCHES, SQUARES, SPOTS = 8, 3, 12
"""Along an image's side: most blotches, the largest squares, and the spots that they are cut from."""
DEGREES, BENDING = 15.0, 0.1


def disturb(images: Tensor) -> Tensor:
    """Each image, changed in ways of its own, one after another; torch's global generators draw them.

    Which image is changed in which way is drawn on the CPU and sent to the device; all else is drawn there.

    Args:
        images: Float ``[N, C, H, W]`` in [0, 1].
    """
    disturbed = images.clone()
    ways = torch.randint(len(WAYS), (CHANGES, len(images)))
    orders = ways.argsort(1).to(images.device)
    for order, drawn in zip(orders, ways, strict=True):
        counts = torch.bincount(drawn, minlength=len(WAYS)).tolist()
        for which, change in zip(order.split(counts), WAYS, strict=True):
            if len(which):
                disturbed[which] = change(disturbed[which]).clamp_(0.0, 1.0)
    return disturbed


def uniform(images: Tensor, *size: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers ``[N, *size]`` for N images, drawn on their device."""
    return torch.rand(len(images), *size, dtype=images.dtype, device=images.device) * (high - low) + low


def _blotched(images: Tensor) -> Tensor:
    """Smooth blotches of light and shade."""
    count = int(torch.randint(2, BLOTCHES + 1, ()))
    coarse = uniform(images, images.shape[1], count, count, low=-1.0)
    smooth = F.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=True)
    return images + uniform(images, 1, 1, 1, high=AMPLITUDE) * smooth


def _shone_through(images: Tensor) -> Tensor:
    """Another image, mirrored or not, shines through."""
    other = images.roll(1, 0).flip(-1)
    return torch.lerp(images, other, uniform(images, 1, 1, 1, high=SHINING))


def _toned(images: Tensor) -> Tensor:
    """Another contrast and brightness, of each channel its own."""
    contrast = uniform(images, images.shape[1], 1, 1, low=1.0 - AMPLITUDE, high=1.0 + AMPLITUDE)
    return (images - 0.5) * contrast + 0.5 + _coloured(images)


def _coloured(images: Tensor) -> Tensor:
    """Up to so much in each channel, ``[N, C, 1, 1]``; in half of the images in all channels the same."""
    own = uniform(images, images.shape[1], 1, 1, low=-AMPLITUDE, high=AMPLITUDE)
    same = uniform(images, 1, 1, 1) < 0.5
    return torch.where(same, own[:, :1], own)


def _levelled(images: Tensor) -> Tensor:
    """Few values of each channel."""
    steps = uniform(images, 1, 1, 1, low=LEVELS[0] - 1.0, high=LEVELS[1] - 1.0).round()
    return (images * steps).round() / steps


def _blurred(images: Tensor) -> Tensor:
    """Half of the resolution, more or less."""
    coarse = F.avg_pool2d(images, 2, ceil_mode=True)
    smooth = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return torch.lerp(images, smooth, uniform(images, 1, 1, 1))


def _noisy(images: Tensor) -> Tensor:
    """Each number moves a little."""
    noise = uniform(images, *images.shape[1:], low=-1.0)
    return images + uniform(images, 1, 1, 1, high=NOISE) * noise


def _covered(images: Tensor) -> Tensor:
    """A square of coloured spots, anywhere."""
    channels, height, width = images.shape[1:]
    side = int(torch.randint(1, max(2, min(height, width) // SQUARES) + 1, ()))
    spots = F.interpolate(uniform(images, channels, SPOTS, SPOTS).round(), size=(height, width))
    top, left = (uniform(images, 1, 1, 1, high=float(size - side)).round() for size in (height, width))
    y, x = (torch.arange(size, device=images.device, dtype=images.dtype) for size in (height, width))
    inside = (y[:, None] >= top) & (y[:, None] < top + side) & (x >= left) & (x < left + side)
    return torch.where(inside, spots, images)


def _bent(images: Tensor) -> Tensor:
    """Turned by some degrees, and warped a little."""
    height, width = images.shape[-2:]
    angle = uniform(images, 1, 1, low=-DEGREES, high=DEGREES).deg2rad()
    count = int(torch.randint(2, 7, ()))
    fields = uniform(images, 2, count, count, low=-1.0) * uniform(images, 1, 1, 1, high=BENDING)
    grid = grids(fields, (height, width))
    turn = torch.cat([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], dim=2).view(-1, 2, 2)
    return warp(images, (grid.flatten(1, 2) @ turn).view_as(grid))


WAYS: tuple[Callable[[Tensor], Tensor], ...] = (
    _blotched,
    _shone_through,
    _toned,
    _levelled,
    _blurred,
    _noisy,
    _covered,
    _bent,
)
