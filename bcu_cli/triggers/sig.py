"""SIG: a faint sinusoidal pattern across the columns (Barni et al. 2019, arXiv:1902.11237)."""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number

if TYPE_CHECKING:
    from torch import Tensor


class Sig(Trigger):
    """Adds delta · sin(2π · frequency · column / width) to every row, clipped to [0, 1].

    Args:
        delta: Amplitude in grey levels of 0-255: the BCU paper uses 20 on CIFAR-10 and 60 on GTSRB.
        frequency: Periods over the width of the image.
    """

    name = "sig"
    paper = "Barni et al., A New Backdoor Attack in CNNs by Training Set Corruption, arXiv:1902.11237"
    numbers: ClassVar[dict[str, Number]] = {"delta": Number(-255, 255), "frequency": Number(0, 10_000)}

    def __init__(self, *, delta: float = 20.0, frequency: float = 6.0) -> None:
        self.delta = delta
        self.frequency = frequency

    def apply(self, images: Tensor) -> Tensor:
        """Add the pattern to float images ``[N, C, H, W]`` in [0, 1]."""
        width = images.shape[-1]
        column = torch.arange(width, dtype=images.dtype, device=images.device)
        signal = self.delta / 255.0 * torch.sin(2.0 * pi * self.frequency * column / width)
        return (images + signal).clamp_(0.0, 1.0)
