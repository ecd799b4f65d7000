"""Patches tried one by one: gradients seldom lead to a small sharp patch, but few kinds are in use.

An attacker's patch is mostly a square, a grid or a mosaic, and a network that answers to one answers to many
like it. So a cleansed network is shown one of each kind, size, place and colour, and its answers are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

SIDES = (2, 3, 4, 5, 6, 7, 8)
"""Sides of the patches, in pixels of an image whose shorter side has 32."""
CORNERS = tuple(product((0.0, 1.0), repeat=2))
MIDDLES = ((0.5, 0.5), (0.0, 0.5), (0.5, 0.0), (1.0, 0.5), (0.5, 1.0))
"""Places of patches, as shares of what they leave free: down, then across."""
MARGINS = 4
"""A patch lies in each corner, or 1, 2 or 3 pixels of 32 further inwards: one pixel can matter."""
COLOURS, MOSAICS = 3, 2
"""Colours of squares tried at each size and place, beside black and white; and mosaics tried there."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A patch at one place of an image.

    Args:
        kind: ``square`` (of one colour), ``grid`` (a checkerboard of two) or ``mosaic`` (random colours).
        top: Its first row.
        left: Its first column.
        pixels: Its values, uint8 ``[C, h, w]``.
    """

    kind: str
    top: int
    left: int
    pixels: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Images with the patch in place, uint8 ``[N, C, H, W]`` to as many."""
        height, width = self.pixels.shape[1:]
        changed = images.clone()
        place = changed[..., self.top : self.top + height, self.left : self.left + width]
        place.copy_(self.pixels)
        return changed


def draw(shape: tuple[int, int, int], seed: int) -> list[Patch]:
    """Squares, grids and mosaics of all sizes, at all places, in the same order for the same seed.

    Args:
        shape: Shape of the images, (C, H, W).
        seed: Decides colours.
    """
    generator = torch.Generator().manual_seed(seed)
    unit = min(shape[1:]) / 32.0
    cell = max(1, round(unit))
    places = [(place, round(each * unit)) for place in CORNERS for each in range(MARGINS)]
    places += [(place, 0) for place in MIDDLES]
    patches = []
    sides = sorted({max(1, round(each * unit / cell)) for each in SIDES})
    for cells, (place, margin) in product(sides, dict.fromkeys(places)):
        for kind, coarse in _fillings(shape[0], cells, generator):
            pixels = coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
            free = [size - len(pixels[0]) for size in shape[1:]]
            top, left = (_start(*each, margin) for each in zip(place, free, strict=True))
            patches.append(Patch(kind=kind, top=top, left=left, pixels=pixels))
    return patches


def on_images(patches: Sequence[Patch], images: Tensor) -> Tensor:
    """Each patch on each image, ``[patches · N, C, H, W]``, those of a patch one after another."""
    return torch.cat([patch(images) for patch in patches])


def _start(where: float, free: int, margin: int) -> int:
    """The first row or column of a patch, for a place that leaves ``free`` of them."""
    return min(max(round(where * free), margin), max(0, free - margin)) if free > 0 else 0


def _fillings(channels: int, side: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Fillings for patches of so many cells a side: a kind, and uint8 ``[C, side, side]``."""

    def drawn(*size: int) -> Tensor:
        return (255.0 * torch.rand(size, generator=generator).round()).to(torch.uint8)

    black = torch.zeros(channels, 1, 1, dtype=torch.uint8)
    for colour in (black, 255 - black, *drawn(COLOURS, channels, 1, 1)):
        yield "square", colour.expand(channels, side, side)
    place = torch.arange(side)
    for width, (one, other) in (
        (1, (black, 255 - black)),
        (2, (255 - black, black)),
        (1, drawn(2, channels, 1, 1)),
    ):
        odd = (place[:, None] // width + place // width) % 2 == 1
        yield "grid", torch.where(odd, other, one)
    for _ in range(MOSAICS):
        yield "mosaic", drawn(channels, side, side)
