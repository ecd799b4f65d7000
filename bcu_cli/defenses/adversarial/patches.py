"""Patches tried one by one: gradients seldom find a small sharp patch, but few kinds are in use.

An attacker's patch is mostly a square, a grid or a mosaic, and a backdoored network also responds to similar
patches. So a network is tested with one patch of each kind, size, position and colour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import torch

from bcu_cli.training.inference import predict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device

SIDES = (2, 3, 4, 5, 6, 7, 8)
"""Sides of the patches, in pixels of an image whose shorter side has 32 pixels."""
CORNERS = tuple(product((0.0, 1.0), repeat=2))
MIDDLES = ((0.5, 0.5), (0.0, 0.5), (0.5, 0.0), (1.0, 0.5), (0.5, 1.0))
"""Corners, and centre and edges of an image: (vertical, horizontal) positions as shares of the free space."""
MARGINS = 4
"""Patches lie in each corner, and 1, 2 or 3 pixels of 32 further inwards: one pixel can matter."""
COLOURS, MOSAICS = 3, 2
"""Random colours of squares, beside black and white, and mosaics, for each size and position."""
AT_EACH_PLACE = 2 + COLOURS + 3 + MOSAICS
"""Patches of each size at each place: squares, of them a black and a white one, three grids, and mosaics."""
MOST_INVERTED = 16
"""Most cells of a patch that are inverted, one at a time, for patches near it."""
SCREENING_IMAGES = 6
"""Images that every patch is tried on."""
SCREENING_BATCH = 512
"""Most images with patches in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A patch at a fixed position.

    Args:
        kind: ``square`` (of one colour), ``grid`` (a checkerboard of two) or ``mosaic`` (random colours).
        top: First row of the patch.
        left: First column of the patch.
        pixels: Values of the patch, uint8 ``[C, h, w]``.
    """

    kind: str
    top: int
    left: int
    pixels: Tensor

    @property
    def key(self) -> tuple[int, int, bytes]:
        """What tells patches apart: position and pixels."""
        return self.top, self.left, self.pixels.numpy().tobytes()

    def neighbours(self, shape: tuple[int, int, int]) -> list[Patch]:
        """Patches that differ a little: inverted in all or in one cell, mirrored, or moved by one cell.

        Args:
            shape: Shape of the images, (C, H, W); the moved patches lie within.
        """
        cell, (height, width) = cell_of(shape), self.pixels.shape[1:]
        contents = [255 - self.pixels, self.pixels.flip(-1)]
        corners = list(product(range(0, height, cell), range(0, width, cell)))
        diagonal = len(range(0, width, cell)) + 1  # a step to the next row and column, wrapped at the end
        for each in range(min(len(corners), MOST_INVERTED)):
            row, column = corners[each * diagonal % len(corners)]
            changed = self.pixels.clone()
            inverted = changed[:, row : row + cell, column : column + cell]
            inverted.copy_(255 - inverted)
            contents.append(changed)
        moved = []
        for down, right in ((-cell, 0), (cell, 0), (0, -cell), (0, cell)):
            top, left = self.top + down, self.left + right
            if 0 <= top <= shape[1] - height and 0 <= left <= shape[2] - width:
                moved.append(replace(self, top=top, left=left))
        return [*(replace(self, pixels=pixels) for pixels in contents), *moved]

    def __call__(self, images: Tensor) -> Tensor:
        """The images with the patch in place; takes and returns uint8 ``[N, C, H, W]``."""
        height, width = self.pixels.shape[1:]
        changed = images.clone()
        place = changed[..., self.top : self.top + height, self.left : self.left + width]
        place.copy_(self.pixels)
        return changed


def draw(shape: tuple[int, int, int], seed: int, *, largest: float = 1.0) -> list[Patch]:
    """Draw squares, grids and mosaics of all sizes at all positions; the same seed gives the same list.

    Args:
        shape: Shape of the images, (C, H, W).
        seed: Seed of the colours.
        largest: Largest share of the image that a patch covers.
    """
    generator = torch.Generator().manual_seed(seed)
    unit, cell = min(shape[1:]) / 32.0, cell_of(shape)
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
    most = largest * shape[1] * shape[2]
    return [each for each in patches if each.pixels[0].numel() <= most]


def cell_of(shape: tuple[int, int, int]) -> int:
    """Side of a cell of a patch, in pixels, for images of a shape (C, H, W)."""
    return max(1, round(min(shape[1:]) / 32.0))


def on_images(patches: Sequence[Patch], images: Tensor) -> Tensor:
    """Every patch on every image, ``[len(patches) · N, C, H, W]``, grouped by patch."""
    return torch.cat([patch(images) for patch in patches])


def answers(
    patches: Sequence[Patch],
    images: Tensor,
    networks: Sequence[Classifier],
    without: Tensor,
    device: Device,
) -> Tensor:
    """The answers of networks to every patch on every image, whatever the number of classes.

    Args:
        patches: The patches.
        images: A few images, uint8 ``[N, C, H, W]``.
        networks: The networks.
        without: Answers to the images without a patch, int64 ``[N]``.
        device: The device to run on.

    Returns:
        int64 ``[len(patches), len(networks) * N]``; -1 where a patch changes nothing.
    """
    step = max(1, SCREENING_BATCH // len(images))
    rows = []
    for start in range(0, len(patches), step):
        batch = patches[start : start + step]
        shown = on_images(batch, images)
        each = [predict(network, shown, device).view(len(batch), len(images)) for network in networks]
        rows.append(torch.cat([found.masked_fill(found == without, -1) for found in each], 1))
    return torch.cat(rows)


def _start(where: float, free: int, margin: int) -> int:
    """First row or column of a patch that leaves ``free`` rows or columns uncovered."""
    return min(max(round(where * free), margin), max(0, free - margin)) if free > 0 else 0


def _fillings(channels: int, side: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Kinds and contents, uint8 ``[C, side, side]``, of the patches of a size in cells."""

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
