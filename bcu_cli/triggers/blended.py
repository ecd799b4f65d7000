"""Blended: a faint random pattern over the whole image (Chen et al. 2017, arXiv:1712.05526)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Floats, Number

if TYPE_CHECKING:
    from torch import Tensor


class Blended(Trigger):
    """(1 - alpha) · image + alpha · pattern, each value of the pattern uniform in [0, 256) / 255.

    Args:
        pattern: float ``[C, H, W]`` in [0, 1].
        alpha: Share of the pattern, in [0, 1]; the BCU paper uses 0.2.
    """

    name = "blended"
    paper = "Chen et al., Targeted Backdoor Attacks Using Data Poisoning, arXiv:1712.05526"
    numbers: ClassVar[dict[str, Number]] = {"alpha": Number(0, 1)}
    floats: ClassVar[dict[str, Floats]] = {"pattern": Floats(("C", "H", "W"), 0, 1)}

    def __init__(self, *, pattern: Tensor, alpha: float = 0.2) -> None:
        self.pattern = pattern
        self.alpha = alpha

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], *, seed: int = 0) -> Self:
        """A pattern drawn from ``seed`` for images of ``shape`` (C, H, W)."""
        generator = torch.Generator().manual_seed(seed)
        return cls(pattern=torch.randint(0, 256, shape, generator=generator).float() / 255.0)

    def apply(self, images: Tensor) -> Tensor:
        """Blend the pattern into float images ``[N, C, H, W]`` in [0, 1]."""
        return torch.lerp(images, self.pattern.to(images).expand_as(images), self.alpha)
