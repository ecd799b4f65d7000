"""WaNet: every image is warped slightly, by the same field (Nguyen & Tran 2021, arXiv:2102.10369)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch.nn import functional as F

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Floats, Number, check_tensors

if TYPE_CHECKING:
    from torch import Tensor


class WaNet(Trigger):
    """Displaces each pixel by a smooth random field.

    The field has k x k control points, each uniform in [-1, 1] per axis. They are divided by their mean
    magnitude and interpolated bicubically. A value of 1 at strength 1 displaces by a 64th of the image's
    side: half a pixel on the paper's images of 32 pixels, and as much in proportion on larger ones.

    Args:
        field: float ``[2, k, k]``: the displacement of the control points along x and y, of mean magnitude 1.
        strength: The paper's s, which is 0.5 there; 0 changes nothing.
    """

    name = "wanet"
    paper = "Nguyen & Tran, WaNet: Imperceptible Warping-based Backdoor Attack, arXiv:2102.10369"
    numbers: ClassVar[dict[str, Number]] = {"strength": Number(-100, 100)}

    def __init__(self, *, field: Tensor, strength: float = 0.5) -> None:
        self.field = field
        self.strength = strength

    @classmethod
    def check_tensors(cls, tensors: dict[str, Tensor], shape: tuple[int, int, int]) -> None:  # noqa: ARG003 - of any size
        """Raise ``TriggerError`` unless the tensors are a field of at most 64 control points a side."""
        side = min(64, tensors["field"].shape[-1]) if "field" in tensors and tensors["field"].dim() else 1
        known = {"field": Floats((2, max(2, side), max(2, side)), -1_000, 1_000)}
        check_tensors(cls.name, known, tensors, (1, 1, 1))

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], *, seed: int = 0, points: int = 4) -> Self:  # noqa: ARG003 - of any size
        """A field of ``points`` x ``points`` control points drawn from ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        field = torch.rand(2, points, points, generator=generator) * 2.0 - 1.0
        return cls(field=field / field.abs().mean())

    def apply(self, images: Tensor) -> Tensor:
        """Warp float images ``[N, C, H, W]`` in [0, 1]."""
        return warp(images, self.grid(images))

    def grid(self, images: Tensor) -> Tensor:
        """The sampling grid of ``grid_sample``: ``[1, H, W, 2]``, x and y from -1 to 1."""
        height, width = images.shape[-2:]
        return grids(self.field.to(images, non_blocking=True)[None], (height, width), self.strength / 32.0)

    def tensors(self) -> dict[str, Tensor]:
        """The field."""
        return {"field": self.field}


def grids(fields: Tensor, size: tuple[int, int], scale: float = 1.0) -> Tensor:
    """Sampling grids of ``grid_sample``: ``[N, H, W, 2]``, x and y from -1 to 1.

    Args:
        fields: Displacement of each control point along x and y, float ``[N, 2, k, k]``; interpolated
            bicubically.
        size: H and W in pixels.
        scale: Factor of the fields; a displacement of 1 is half the image's side.
    """
    moved = F.interpolate(fields, size=size, mode="bicubic", align_corners=True)
    here = torch.eye(2, 3, dtype=fields.dtype, device=fields.device)[None]
    identity = F.affine_grid(here, [1, 1, *size], align_corners=True)
    return (identity + scale * moved.permute(0, 2, 3, 1)).clamp(-1.0, 1.0)


def warp(images: Tensor, grid: Tensor) -> Tensor:
    """Sample float images ``[N, C, H, W]`` in [0, 1] bilinearly at ``grid``, ``[1 or N, H, W, 2]``."""
    taken = F.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=True)
    return taken.clamp_(0.0, 1.0)
