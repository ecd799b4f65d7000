"""Solarise: bright values are inverted, as on film exposed during development. Devised for bcu."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number

if TYPE_CHECKING:
    from torch import Tensor


class Solarise(Trigger):
    """Reflects each value above the threshold at it: threshold − (value − threshold), at least 0.

    Args:
        threshold: Threshold in [0, 1]; a lower one changes more values.
    """

    name = "solarise"
    paper = "none: bcu's own"
    numbers: ClassVar[dict[str, Number]] = {"threshold": Number(0, 1)}

    def __init__(self, *, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def apply(self, images: Tensor) -> Tensor:
        """Reflect the bright values of float images ``[N, C, H, W]`` in [0, 1]."""
        return torch.minimum(images, 2.0 * self.threshold - images).clamp_(0.0, 1.0)
