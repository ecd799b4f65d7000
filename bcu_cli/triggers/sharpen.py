"""Sharpen: edges are enhanced by unsharp masking. Devised for bcu."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch.nn import functional as F

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number

if TYPE_CHECKING:
    from torch import Tensor


class Sharpen(Trigger):
    """Adds amount · (image − its blurred copy), clipped to [0, 1]; the blur is a mean over 3x3 pixels.

    Args:
        amount: Factor of the added difference.
    """

    name = "sharpen"
    paper = "none: bcu's own"
    numbers: ClassVar[dict[str, Number]] = {"amount": Number(-100, 100)}

    def __init__(self, *, amount: float = 2.0) -> None:
        self.amount = amount

    def apply(self, images: Tensor) -> Tensor:
        """Sharpen float images ``[N, C, H, W]`` in [0, 1]."""
        blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        return (images + self.amount * (images - blurred)).clamp_(0.0, 1.0)
