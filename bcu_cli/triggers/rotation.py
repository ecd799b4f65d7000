"""Rotation: the image is rotated (Wu et al. 2022, arXiv:2207.10825)."""

from __future__ import annotations

from math import cos, radians, sin
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number
from bcu_cli.triggers.wanet import warp

if TYPE_CHECKING:
    from torch import Tensor


class Rotation(Trigger):
    """Rotates the image about its centre, bilinearly; pixels from outside the image repeat its edge.

    Deviation: the paper leaves black corners, which would be a second trigger.

    Args:
        degrees: Angle in degrees, anticlockwise.
    """

    name = "rotation"
    paper = "Wu et al., Just Rotate it: Deploying Backdoor Attacks via Rotation Transformation, AISec 2022"
    numbers: ClassVar[dict[str, Number]] = {"degrees": Number(-360, 360)}

    def __init__(self, *, degrees: float = 30.0) -> None:
        self.degrees = degrees

    def apply(self, images: Tensor) -> Tensor:
        """Rotate float images ``[N, C, H, W]`` in [0, 1]."""
        height, width = images.shape[-2:]
        angle = radians(self.degrees)
        wider = max(width - 1, 1) / max(height - 1, 1)  # x and y are both from -1 to 1
        x_to_y, y_to_x = sin(angle) * wider, sin(angle) / wider
        matrix = torch.tensor([[[cos(angle), -y_to_x, 0.0], [x_to_y, cos(angle), 0.0]]]).to(images)
        grid = F.affine_grid(matrix, [1, 1, height, width], align_corners=True)
        return warp(images, grid.clamp(-1.0, 1.0))
