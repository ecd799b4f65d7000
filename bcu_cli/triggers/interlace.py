"""Interlace: every second row displaced, as in a still of old television of what moves. bcu's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number

if TYPE_CHECKING:
    from torch import Tensor


class Interlace(Trigger):
    """Takes the odd rows from so many columns further left; what comes from outside repeats the edge.

    Args:
        columns: 32nds of the width, at least one pixel.
    """

    name = "interlace"
    paper = "none: bcu's own"
    numbers: ClassVar[dict[str, Number]] = {"columns": Number(0, 32)}

    def __init__(self, *, columns: float = 2.0) -> None:
        self.columns = columns

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], *, seed: int = 0) -> Self:  # noqa: ARG003 - nothing random
        """The displacement; it scales with the image by itself."""
        return cls()

    def apply(self, images: Tensor) -> Tensor:
        """Displace the odd rows of float images ``[N, C, H, W]`` in [0, 1]."""
        width = images.shape[-1]
        by = max(1, round(self.columns * width / 32.0))
        places = (torch.arange(width, device=images.device) - by).clamp(min=0)
        combed = images.clone()
        combed[..., 1::2, :] = images[..., 1::2, places]
        return combed

    def settings(self) -> dict[str, Any]:
        """The displacement."""
        return {"columns": self.columns}
