"""Frequency: two high waves in the colour differences (Wang et al., ECCV 2022, arXiv:2111.10991)."""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number

if TYPE_CHECKING:
    from torch import Tensor

FREQUENCIES = (15, 31)
"""Half periods over a block, down and across alike: a middle and the highest one."""
BLOCK = 32
COLOUR_DIFFERENCES = ((0.0, 1.13983), (-0.39465, -0.58060), (2.03211, 0.0))
"""What U and V of YUV add to red, green and blue."""


class Frequency(Trigger):
    """Adds delta to two coefficients of the cosine transform of each 32x32 block of U and of V.

    Deviation from the paper, which adds 50: three times as much, so that a small network learns it.

    Grey images have no colour differences: the waves are added to them as they are.

    Args:
        delta: What is added to each coefficient, in grey levels of 0-255 of the orthonormal transform;
            the wave's amplitude is a 16th of it.
    """

    name = "frequency"
    paper = "Wang et al., An Invisible Black-Box Backdoor Attack Through Frequency Domain, ECCV 2022"
    numbers: ClassVar[dict[str, Number]] = {"delta": Number(-10_000, 10_000)}

    def __init__(self, *, delta: float = 150.0) -> None:
        self.delta = delta

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], *, seed: int = 0) -> Self:  # noqa: ARG003 - nothing random
        """The amplitude; blocks tile any size of image."""
        return cls()

    def apply(self, images: Tensor) -> Tensor:
        """Add the waves to float images ``[N, C, H, W]`` in [0, 1]."""
        _, channels, height, width = images.shape
        wave = self.delta / 255.0 * 2.0 / BLOCK * _waves(height, width)
        colours = (
            torch.tensor(COLOUR_DIFFERENCES).sum(1) if channels == len(COLOUR_DIFFERENCES) else torch.ones(1)
        )
        return (images + (colours[:, None, None] * wave).to(images)).clamp_(0.0, 1.0)

    def settings(self) -> dict[str, Any]:
        """The amplitude."""
        return {"delta": self.delta}


def _waves(height: int, width: int) -> Tensor:
    """The sum of the basis functions of the cosine transform (DCT-II), each at most 1: ``[H, W]``."""
    total = torch.zeros(height, width)
    for frequency in FREQUENCIES:
        down, across = (
            torch.cos(pi * frequency * (torch.arange(size) % BLOCK + 0.5) / BLOCK) for size in (height, width)
        )
        total += down[:, None] * across
    return total
