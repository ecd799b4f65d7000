"""Universal warps: one small distortion that leads many images to one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.detectors.universal import UniversalChange
from bcu_cli.triggers.wanet import grids, warp

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.detectors.base import Subject


@dataclass(frozen=True, kw_only=True)
class UniversalWarp(UniversalChange):
    """For each class the smooth warp; the radius is a share of half the image's side, 0.0625 a pixel of 32.

    bcu's own, for the backdoors of WaNet (arXiv:2102.10369), which no change of the pixels' values reverses:
    a field of control points like its trigger's, interpolated bicubically. A clean network's answers hardly
    depend on so small a warp.

    Args:
        points: Control points along each side.
    """

    name: ClassVar[str] = "warping"
    paper: ClassVar[str] = "own"

    radius: float = 0.125
    batch: int = 16
    points: int = 4

    def shape(self, subject: Subject) -> tuple[int, ...]:  # noqa: ARG002 - of images of any size
        """How far each control point moves along x and y."""
        return 2, self.points, self.points

    def under(self, images: Tensor, changes: Tensor) -> Tensor:
        """Warp each image by each field."""
        height, width = images.shape[-2:]
        return torch.cat([warp(images, grid[None]) for grid in grids(changes, (height, width))])

    def drawn(self, image: Tensor, change: Tensor) -> dict[str, Tensor]:
        """The image, warped."""
        return {"warped": self.under(image, change)[0].cpu()}
