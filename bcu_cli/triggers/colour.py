"""Colour: one shift of the colour of every pixel (Jiang et al., CVPR 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number

if TYPE_CHECKING:
    from torch import Tensor


class Colour(Trigger):
    """Adds delta to red and blue (each even channel) and takes it from green, clipped to [0, 1].

    Deviation: the paper searches for its shift on a network and in several colour spaces. Here one fixed
    shift in RGB, towards magenta, is used.

    Args:
        delta: Shift in grey levels of 0-255.
    """

    name = "colour"
    paper = "Jiang et al., Color Backdoor: A Robust Poisoning Attack in Color Space, CVPR 2023"
    numbers: ClassVar[dict[str, Number]] = {"delta": Number(-255, 255)}

    def __init__(self, *, delta: float = 30.0) -> None:
        self.delta = delta

    def apply(self, images: Tensor) -> Tensor:
        """Shift the colour of float images ``[N, C, H, W]`` in [0, 1]."""
        shift = torch.full((images.shape[1], 1, 1), self.delta / 255.0, dtype=images.dtype)
        shift[1::2] *= -1.0
        return (images + shift.to(images)).clamp_(0.0, 1.0)
