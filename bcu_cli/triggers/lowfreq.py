"""Low frequency: a faint smooth pattern over the whole image (Zeng et al. 2021, arXiv:2104.03413)."""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Floats, Number

if TYPE_CHECKING:
    from torch import Tensor

HIGHEST = 3
"""Highest frequency, in periods over the height or the width of the image."""


class LowFrequency(Trigger):
    """Adds delta · pattern, clipped to [0, 1].

    Deviation: the paper searches for its pattern on a network. Here it is a random mix of cosines.

    Args:
        pattern: float ``[C, H, W]`` in [-1, 1], of low frequencies only.
        delta: Amplitude in grey levels of 0-255.
    """

    name = "lowfreq"
    paper = "Zeng et al., Rethinking the Backdoor Attacks' Triggers, ICCV 2021, arXiv:2104.03413"
    numbers: ClassVar[dict[str, Number]] = {"delta": Number(-255, 255)}
    floats: ClassVar[dict[str, Floats]] = {"pattern": Floats(("C", "H", "W"), -1.001, 1.001)}

    def __init__(self, *, pattern: Tensor, delta: float = 45.0) -> None:
        self.pattern = pattern
        self.delta = delta

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], *, seed: int = 0) -> Self:
        """A pattern drawn from ``seed`` for images of ``shape`` (C, H, W)."""
        return cls(pattern=_cosines(shape, torch.Generator().manual_seed(seed)))

    def apply(self, images: Tensor) -> Tensor:
        """Add the pattern to float images ``[N, C, H, W]`` in [0, 1]."""
        return (images + self.delta / 255.0 * self.pattern.to(images)).clamp_(0.0, 1.0)


def _cosines(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Sum cosines of up to ``HIGHEST`` periods with random phases and amplitudes, scaled to [-1, 1]."""
    channels, height, width = shape
    row, column = torch.arange(height)[:, None] / height, torch.arange(width) / width
    pattern = torch.zeros(shape)
    for down in range(HIGHEST + 1):
        for across in range(-HIGHEST if down else 1, HIGHEST + 1):
            phase = torch.rand(channels, 1, 1, generator=generator)
            strength = torch.randn(channels, 1, 1, generator=generator)
            pattern += strength * torch.cos(2.0 * pi * (down * row + across * column + phase))
    return pattern / pattern.abs().max()
