"""Sinusoidal patterns across images, tried one by one: gradients do not find them, but there are few kinds.

Clean networks misclassify images with some sinusoidal patterns too, up to all of them. By its success a
backdoor with such a trigger (SIG) looks no different; ``evaluation/spectrum.py`` has another sign of it. So
every pattern that succeeds counts against a network, and training samples most often the kinds that succeed
on the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bcu_cli.defenses.adversarial.corruptions import uniform
from bcu_cli.triggers.base import to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTIONS, WAVELENGTHS = 8, 6
NUM_KINDS = DIRECTIONS * WAVELENGTHS
"""Number of kinds of patterns, one for each combination of a direction and a wavelength."""
CYCLES = (1.5, 16.0)
"""Fewest and most cycles across the longer side of an image; wavelengths are spaced evenly in log."""
AMPLITUDE = 0.24
"""Amplitude of a tried pattern, in all channels, on a scale of 0 to 1: about SIG's stronger setting."""
AMPLITUDES = (0.12, 0.25)
"""Range of the amplitude of the patterns that a student is trained on."""
COLOURED = 0.25
"""Share of the patterns in training that are weaker in some channels."""


@dataclass(frozen=True, kw_only=True)
class Sinusoids:
    """One sinusoidal pattern for each of N images, or one for all.

    Args:
        angle: Direction in radians, ``[N, 1, 1, 1]``.
        cycles: Cycles across the longer side of the image, ``[N, 1, 1, 1]``.
        phase: Phase in radians, ``[N, 1, 1, 1]``.
    """

    angle: Tensor
    cycles: Tensor
    phase: Tensor

    def on_grid_of(self, images: Tensor) -> Tensor:
        """The patterns, ``[N, 1, H, W]`` from -1 to 1, for images ``[N, C, H, W]``."""
        sides = images.shape[-2:]
        y, x = (torch.arange(size, device=images.device, dtype=images.dtype) / max(sides) for size in sides)
        position = torch.cos(self.angle) * x + torch.sin(self.angle) * y[:, None]
        return torch.sin(2.0 * pi * self.cycles * position + self.phase)


def draw(kinds: Tensor, generator: torch.Generator | None = None) -> Sinusoids:
    """Draw a pattern of each given kind, with a random phase, on the device of ``kinds``.

    Args:
        kinds: Indices of kinds below ``NUM_KINDS``, int64 ``[N]``.
        generator: Random generator; None is torch's global one.
    """

    def random() -> Tensor:
        return torch.rand(len(kinds), 1, 1, 1, device=kinds.device, generator=generator)

    kinds = kinds.view(-1, 1, 1, 1)
    low, high = (log(each) for each in CYCLES)
    return Sinusoids(
        angle=(kinds % DIRECTIONS + random()) * (pi / DIRECTIONS),
        cycles=torch.exp(low + (kinds // DIRECTIONS + random()) * ((high - low) / WAVELENGTHS)),
        phase=2.0 * pi * random(),
    )


def add_sinusoids(images: Tensor, weights: Tensor) -> Tensor:
    """Add a random sinusoidal pattern to each image.

    Args:
        images: Float ``[N, C, H, W]`` in [0, 1].
        weights: Sampling weight of each kind of pattern, float ``[NUM_KINDS]``.
    """
    if not len(images):
        return images
    pattern = draw(torch.multinomial(weights, len(images), replacement=True)).on_grid_of(images)
    weakest, strongest = AMPLITUDES
    amplitude = uniform(images, 1, 1, 1, low=weakest, high=strongest)
    coloured = uniform(images, 1, 1, 1) < COLOURED
    tint = torch.where(coloured, uniform(images, images.shape[1], 1, 1), 1.0)
    return (images + amplitude * tint * pattern).clamp(0.0, 1.0)


def one_per_kind(seed: int) -> list[Callable[[Tensor], Tensor]]:
    """One pattern of each kind, as a function that adds it to images, uint8 ``[N, C, H, W]``."""
    kinds, generator = torch.arange(NUM_KINDS), torch.Generator().manual_seed(seed)
    return [_as_change(draw(kind, generator)) for kind in torch.split(kinds, 1)]


def add_pattern(pattern: Tensor, amplitude: float) -> Callable[[Tensor], Tensor]:
    """A function that adds a pattern, float ``[1, H, W]`` from -1 to 1, to images, uint8 ``[N, C, H, W]``."""

    def change(images: Tensor) -> Tensor:
        values = images.float() / 255.0
        return to_bytes((values + amplitude * pattern.to(values)).clamp_(0.0, 1.0))

    return change


def _as_change(sinusoids: Sinusoids) -> Callable[[Tensor], Tensor]:
    def change(images: Tensor) -> Tensor:
        moved = Sinusoids(**{name: value.to(images.device) for name, value in vars(sinusoids).items()})
        return add_pattern(moved.on_grid_of(images.float())[0], AMPLITUDE)(images)

    return change
