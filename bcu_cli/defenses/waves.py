"""Plane waves across images, tried one by one: no gradient leads to a wave, but there are few kinds of them.

Networks are led astray by some waves by nature, up to all images, and a backdoor that answers to one (SIG's)
looks no different (``docs/auto.md``). So all that work are held against a network, and a student is shown
those most often that led the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bcu_cli.defenses.disturbance import uniform
from bcu_cli.triggers.base import to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTIONS, LENGTHS = 8, 6
CELLS = DIRECTIONS * LENGTHS
"""A kind of wave is one of so many directions, with one of so many lengths."""
CYCLES = (1.5, 16.0)
"""Across the longer side of an image, fewest and most; the lengths divide what is between them evenly."""
AMPLITUDE = 0.24
"""Of a wave that is tried, in all channels, on a scale of 0 to 1: about that of SIG's stronger setting."""
AMPLITUDES = (0.12, 0.25)
"""Of those that a student is shown."""
COLOURED = 0.25
"""Share of these that are weaker in some channels."""


@dataclass(frozen=True, kw_only=True)
class Waves:
    """One wave for each of N images, or one for all.

    Args:
        angle: Where it goes, in radians, ``[N, 1, 1, 1]``, as the others.
        cycles: Across the longer side.
        phase: In radians.
    """

    angle: Tensor
    cycles: Tensor
    phase: Tensor

    def like(self, images: Tensor) -> Tensor:
        """Values from -1 to 1, ``[N, 1, H, W]``, for images ``[N, C, H, W]``."""
        sides = images.shape[-2:]
        y, x = (torch.arange(size, device=images.device, dtype=images.dtype) / max(sides) for size in sides)
        place = torch.cos(self.angle) * x + torch.sin(self.angle) * y[:, None]
        return torch.sin(2.0 * pi * self.cycles * place + self.phase)


def drawn(cells: Tensor, generator: torch.Generator | None = None) -> Waves:
    """A wave of each kind, of any phase, on the device of ``cells``.

    Args:
        cells: From 0 to ``CELLS``, int64 ``[N]``.
        generator: None is torch's global one.
    """

    def within() -> Tensor:
        return torch.rand(len(cells), 1, 1, 1, device=cells.device, generator=generator)

    cells = cells.view(-1, 1, 1, 1)
    low, high = (log(each) for each in CYCLES)
    return Waves(
        angle=(cells % DIRECTIONS + within()) * (pi / DIRECTIONS),
        cycles=torch.exp(low + (cells // DIRECTIONS + within()) * ((high - low) / LENGTHS)),
        phase=2.0 * pi * within(),
    )


def across(images: Tensor, leading: Tensor) -> Tensor:
    """Each image with a wave of its own across it.

    Args:
        images: Float ``[N, C, H, W]`` in [0, 1].
        leading: How often waves are of each kind, relative to each other, float ``[CELLS]``.
    """
    if not len(images):
        return images
    wave = drawn(torch.multinomial(leading, len(images), replacement=True)).like(images)
    weakest, strongest = AMPLITUDES
    amplitude = uniform(images, 1, 1, 1, low=weakest, high=strongest)
    coloured = uniform(images, 1, 1, 1) < COLOURED
    tint = torch.where(coloured, uniform(images, images.shape[1], 1, 1), 1.0)
    return (images + amplitude * tint * wave).clamp(0.0, 1.0)


def one_of_each(seed: int) -> list[Callable[[Tensor], Tensor]]:
    """A wave of each kind as a change of images, uint8 ``[N, C, H, W]`` to as many."""
    cells, generator = torch.arange(CELLS), torch.Generator().manual_seed(seed)
    return [_as_change(drawn(cell, generator)) for cell in torch.split(cells, 1)]


def _as_change(waves: Waves) -> Callable[[Tensor], Tensor]:
    def change(images: Tensor) -> Tensor:
        here = Waves(**{name: value.to(images.device) for name, value in vars(waves).items()})
        shown = images.float() / 255.0
        return to_bytes((shown + AMPLITUDE * here.like(shown)).clamp_(0.0, 1.0))

    return change
