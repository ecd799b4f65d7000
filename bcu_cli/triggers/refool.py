"""Refool: the reflection of another scene, as in a window pane (Liu et al. 2020, arXiv:2007.02343)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch.nn import functional as F

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Floats, Number

if TYPE_CHECKING:
    from torch import Tensor

GHOST = 0.4
"""Share of the light that the back of the pane reflects, which arrives displaced."""
BLOBS = 5
"""Random values along each side of the scene, between which its blobs are interpolated."""


class Refool(Trigger):
    """Adds weight · reflection, clipped to [0, 1].

    Deviation: the paper takes photographs and searches for those that work best. Here every image reflects
    the same scene of soft blobs, drawn from a seed. Of the paper's three kinds of reflection, this is the
    ghost effect.

    Args:
        reflection: float ``[C, H, W]`` in [0, 1].
        weight: Share of the reflection that is added, in [0, 1].
    """

    name = "refool"
    paper = "Liu et al., Reflection Backdoor, ECCV 2020, arXiv:2007.02343"
    numbers: ClassVar[dict[str, Number]] = {"weight": Number(0, 1)}
    floats: ClassVar[dict[str, Floats]] = {"reflection": Floats(("C", "H", "W"), -0.001, 1.001)}

    def __init__(self, *, reflection: Tensor, weight: float = 0.25) -> None:
        self.reflection = reflection
        self.weight = weight

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], *, seed: int = 0) -> Self:
        """The reflection of a scene drawn from ``seed`` for images of ``shape`` (C, H, W)."""
        channels, height, width = shape
        offset = max(1, round(min(height, width) / 8))
        values = torch.rand(1, channels, BLOBS, BLOBS, generator=torch.Generator().manual_seed(seed))
        size = (height + offset, width + offset)
        soft = F.interpolate(values, size=size, mode="bicubic", align_corners=True)[0]
        return cls(reflection=ghosted(torch.sigmoid(12.0 * (soft - 0.5)), offset))

    def apply(self, images: Tensor) -> Tensor:
        """Add the reflection to float images ``[N, C, H, W]`` in [0, 1]."""
        return (images + self.weight * self.reflection.to(images)).clamp_(0.0, 1.0)


def ghosted(scene: Tensor, offset: int) -> Tensor:
    """A scene ``[C, H + offset, W + offset]`` and its fainter copy, ``offset`` pixels to the lower right."""
    return torch.lerp(scene[..., offset:, offset:], scene[..., :-offset, :-offset], GHOST)
