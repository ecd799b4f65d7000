"""Frequency: two sinusoidal patterns in the colour differences (Wang et al., ECCV 2022, arXiv:2111.10991)."""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number

if TYPE_CHECKING:
    from torch import Tensor

FREQUENCIES = (15, 31)
"""Half periods over the height and the width of a block: a middle frequency and the highest one."""
BLOCK = 32
"""Side of a block, in pixels."""
COLOUR_DIFFERENCES = ((0.0, 1.13983), (-0.39465, -0.58060), (2.03211, 0.0))
"""Contribution of U and V of YUV to red, green and blue."""


class Frequency(Trigger):
    """Adds delta to two coefficients of the cosine transform of each 32x32 block of U and of V.

    Deviation: the paper adds 50. The default here is three times as much, so that a small network learns the
    trigger.

    Grey images have no colour differences; the pattern is added to their grey values.

    Args:
        delta: Addend of each coefficient of the orthonormal transform, in grey levels of 0-255. The pattern's
            amplitude in the image is a 16th of it.
    """

    name = "frequency"
    paper = "Wang et al., An Invisible Black-Box Backdoor Attack Through Frequency Domain, ECCV 2022"
    numbers: ClassVar[dict[str, Number]] = {"delta": Number(-10_000, 10_000)}

    def __init__(self, *, delta: float = 150.0) -> None:
        self.delta = delta

    def apply(self, images: Tensor) -> Tensor:
        """Add the pattern to float images ``[N, C, H, W]`` in [0, 1]."""
        _, channels, height, width = images.shape
        pattern = self.delta / 255.0 * 2.0 / BLOCK * _cosines(height, width)
        colours = (
            torch.tensor(COLOUR_DIFFERENCES).sum(1) if channels == len(COLOUR_DIFFERENCES) else torch.ones(1)
        )
        return (images + (colours[:, None, None] * pattern).to(images)).clamp_(0.0, 1.0)


def _cosines(height: int, width: int) -> Tensor:
    """The sum of the two basis functions of the cosine transform (DCT-II), each at most 1: ``[H, W]``."""
    total = torch.zeros(height, width)
    for frequency in FREQUENCIES:
        down, across = (
            torch.cos(pi * frequency * (torch.arange(size) % BLOCK + 0.5) / BLOCK) for size in (height, width)
        )
        total += down[:, None] * across
    return total
