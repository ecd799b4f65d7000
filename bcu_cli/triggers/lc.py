"""LC's trigger: BadNets' checkerboard in all four corners (Turner et al. 2019, arXiv:1912.02771)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcu_cli.triggers.badnets import BadNets

if TYPE_CHECKING:
    from torch import Tensor


class LabelConsistent(BadNets):
    """The 3x3 checkerboard in the lower right corner, and its mirror images in the three others.

    Args:
        cell: Side of a cell in pixels.
    """

    name = "lc"
    paper = "Turner et al., Label-Consistent Backdoor Attacks, arXiv:1912.02771"

    def apply(self, images: Tensor) -> Tensor:
        """Replace the corners of float images ``[N, C, H, W]`` in [0, 1]."""
        for mirrored in ((), (-1,), (-2,), (-1, -2)):
            images = super().apply(images.flip(mirrored)).flip(mirrored)
        return images
