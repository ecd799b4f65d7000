"""Universal warps: one small distortion that leads many images to one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F

from bcu_cli.scan.base import Detector, Scores, Subject, stands_out
from bcu_cli.scan.optimising import Ascent, leading, success_rates
from bcu_cli.triggers.wanet import warp

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UniversalWarp(Detector):
    """For each class the smooth warp that leads most images to it, judged on other images.

    bcu's own, for the backdoors of WaNet (arXiv:2102.10369), which no change of the pixels' values reverses:
    a field of control points like its trigger's, interpolated bicubically. A clean network's answers hardly
    depend on so small a warp. A class's value is the log-odds of being led to it.

    Args:
        radius: The farthest that a control point moves, as a share of half the image's side; 0.0625 is one
            pixel of 32.
        points: Control points along each side.
        steps: Of signed gradients, in a batch of ``batch`` images for each class.
        batch: Images of a step.
        most: Images to learn on, and as many to judge by.
    """

    name: ClassVar[str] = "warping"
    paper: ClassVar[str] = "own"
    needs_images: ClassVar[bool] = True

    radius: float = 0.125
    points: int = 4
    steps: int = 40
    batch: int = 16
    most: int = 256

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        learn, judge = subject.divided(self.most)
        count = subject.model.num_classes
        start = torch.zeros(count, 2, self.points, self.points)
        fields = leading(subject, learn, start, _warped, Ascent(self.radius, self.steps, self.batch))
        rates = success_rates(
            subject.model, judge, lambda x, c: _warped(x, fields[c : c + 1]), count, subject.device
        )
        per_class = rates.logit(eps=0.5 / len(judge))
        score, target = stands_out(per_class)
        evidence = {"success": float(rates[target]), "images": len(judge), "radius": self.radius}
        return Scores(
            detector=self.name,
            score=score,
            target=target,
            per_class=per_class,
            evidence=evidence,
            pictures={"warped": _warped(judge[:1], fields[target : target + 1])[0].cpu()},
        )


def _warped(images: Tensor, fields: Tensor) -> Tensor:
    """Every image under every class's warp, ``[K * N, C, H, W]``, those of one class together."""
    height, width = images.shape[-2:]
    moved = F.interpolate(fields, size=(height, width), mode="bicubic", align_corners=True)
    here = torch.eye(2, 3, device=images.device)[None]
    identity = F.affine_grid(here, [1, 1, height, width], align_corners=True)
    grids = (identity + moved.permute(0, 2, 3, 1)).clamp(-1.0, 1.0)
    return torch.cat([warp(images, grid[None]) for grid in grids])
