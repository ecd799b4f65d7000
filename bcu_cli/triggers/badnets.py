"""BadNets: a small checkerboard in the lower right corner (Gu et al. 2017, arXiv:1708.06733)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number

if TYPE_CHECKING:
    from torch import Tensor

PATTERN = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0))


class BadNets(Trigger):
    """A 3x3 checkerboard of black and white cells that replaces the lower right corner.

    A cell is one pixel wide on images of up to 47 pixels. It grows with the image, so that the checkerboard
    covers about 3/32 of the image's side, as in the paper.

    Args:
        cell: Side of a cell in pixels.
    """

    name = "badnets"
    paper = "Gu et al., BadNets, arXiv:1708.06733"
    numbers: ClassVar[dict[str, Number]] = {"cell": Number(1, 1024, whole=True)}

    def __init__(self, *, cell: int = 1) -> None:
        self.cell = cell

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], *, seed: int = 0) -> Self:  # noqa: ARG003 - nothing random
        """The checkerboard for images of ``shape`` (C, H, W)."""
        return cls(cell=max(1, round(min(shape[1:]) / 32)))

    def apply(self, images: Tensor) -> Tensor:
        """Replace the corner of float images ``[N, C, H, W]`` in [0, 1]."""
        pattern = torch.tensor(PATTERN, dtype=images.dtype, device=images.device)
        pattern = pattern.repeat_interleave(self.cell, 0).repeat_interleave(self.cell, 1)
        triggered = images.clone()
        triggered[..., -pattern.shape[0] :, -pattern.shape[1] :] = pattern
        return triggered
