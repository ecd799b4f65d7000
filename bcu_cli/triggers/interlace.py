"""Interlace: every second row is displaced, as in a still of interlaced video. Devised for bcu."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number

if TYPE_CHECKING:
    from torch import Tensor


class Interlace(Trigger):
    """Displaces the odd rows to the right; pixels from outside the image repeat its edge.

    Args:
        columns: Displacement in 32nds of the width; at least one pixel.
    """

    name = "interlace"
    paper = "none: bcu's own"
    numbers: ClassVar[dict[str, Number]] = {"columns": Number(0, 32)}

    def __init__(self, *, columns: float = 2.0) -> None:
        self.columns = columns

    def apply(self, images: Tensor) -> Tensor:
        """Displace the odd rows of float images ``[N, C, H, W]`` in [0, 1]."""
        width = images.shape[-1]
        by = max(1, round(self.columns * width / 32.0))
        places = (torch.arange(width, device=images.device) - by).clamp(min=0)
        displaced = images.clone()
        displaced[..., 1::2, :] = images[..., 1::2, places]
        return displaced
