"""Universal warps: for each class, one small distortion that many images are misclassified with."""

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
    """A smooth warp for each class; the radius is a share of half the image's side (0.0625: a pixel of 32).

    The detector is bcu's, for the backdoors of WaNet (arXiv:2102.10369), which no additive perturbation
    reverses. The warp is a bicubically interpolated field of control points, like WaNet's trigger. The
    predictions of clean networks hardly change under so small a warp.

    Args:
        points: Control points along each side.
    """

    name: ClassVar[str] = "warping"
    paper: ClassVar[str] = "own"

    radius: float = 0.125
    batch: int = 16
    points: int = 4

    def shape(self, subject: Subject) -> tuple[int, ...]:  # noqa: ARG002 - of images of any size
        """The shape of the displacements of the control points along x and y."""
        return 2, self.points, self.points

    def apply(self, images: Tensor, changes: Tensor) -> Tensor:
        """Warp each image by each field."""
        height, width = images.shape[-2:]
        return torch.cat([warp(images, grid[None]) for grid in grids(changes, (height, width))])

    def pictures(self, image: Tensor, change: Tensor) -> dict[str, Tensor]:
        """The warped image."""
        return {"warped": self.apply(image, change)[0].cpu()}
