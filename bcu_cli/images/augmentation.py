"""Augmentation of whole batches on the device, by one gather and without a loop over images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bcu_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Options of random views: rotation, crop of the zero-padded image, mirror image, cutout; in this order.

    Args:
        crop_padding: Pixels of zeros added on each side before the crop; 0 for no crop.
        flip: Whether images are mirrored at random. Mirrored photos keep their class; mirrored traffic signs
            and digits may not.
        rotation: Largest rotation in degrees, either way; nearest neighbour, zeros outside. Half of the
            images are not rotated: a network that sees only rotated pixels is less accurate on others.
        cutout: Side in pixels of a square of zeros at a random place (DeVries & Taylor 2017); 0 for none.
    """

    crop_padding: int = 4
    flip: bool = True
    rotation: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout < 0 or not 0 <= self.rotation <= 180:
            asked = f"crop {self.crop_padding}, rotation {self.rotation}, cutout {self.cutout}"
            raise UsageError(f"the views {asked} make no sense", "pixels from 0, degrees from 0 to 180")


NO_AUGMENTATION = Augmentation(crop_padding=0, flip=False)


def augment(
    images: Tensor,
    options: Augmentation,
    generator: torch.Generator,
    *,
    part: slice = slice(None),
    of: int | None = None,
) -> Tensor:
    """A random view of each image.

    One gather takes each pixel of a view from its source, or sets it to zero. Only the random numbers, a few
    for each image, are copied from the CPU to the device, without a synchronisation.

    Args:
        images: ``[N, C, H, W]`` of any dtype, on any device.
        options: The random changes.
        generator: Generator on the CPU, so that the views do not depend on the device.
        part: Position of the images in a larger batch. Their views are the same as in the whole batch.
        of: Number of images in the whole batch; None where the images are all of it.

    Returns:
        ``[N, C, H, W]``, same dtype and device.
    """
    if options == NO_AUGMENTATION:
        return images
    n = len(images) if of is None else of
    channels, height, width = images.shape[1:]
    device = images.device
    rows = torch.arange(height, device=device).view(1, height, 1).expand(n, -1, -1)  # source rows: [N, H, 1]
    columns = (
        torch.arange(width, device=device).view(1, 1, width).expand(n, -1, -1)
    )  # source columns: [N, 1, W]
    if options.flip:
        mirrored = (torch.rand(n, 1, 1, generator=generator) < 0.5).to(device, non_blocking=True)
        columns = torch.where(mirrored, width - 1 - columns, columns)
    if options.crop_padding:
        rows = rows + _shifts(n, options.crop_padding, generator).to(device, non_blocking=True)
        columns = columns + _shifts(n, options.crop_padding, generator).to(device, non_blocking=True)
    if options.rotation:
        rows, columns = _rotated(rows, columns, (height, width), options.rotation, generator)
    rows, columns = rows[part], columns[part]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    if options.cutout:
        inside = inside & ~_squares((n, height, width), options.cutout, generator, device)[part]
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)  # [N, H, W]
    index = index.view(len(images), 1, -1).expand(-1, channels, -1)
    taken = images.flatten(2).gather(2, index).view_as(images)
    return taken * inside.view(len(images), 1, height, width)


def _shifts(n: int, most: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-most, most + 1, (n, 1, 1), generator=generator)


def _rotated(
    rows: Tensor, columns: Tensor, size: tuple[int, int], degrees: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rotate the source rows and columns of half of the images by random angles: ``[N, H, W]`` each."""
    angle = torch.deg2rad((torch.rand(len(rows), 1, 1, generator=generator) * 2.0 - 1.0) * degrees)
    angle = angle * (torch.rand(len(rows), 1, 1, generator=generator) < 0.5)
    cos, sin = (each.to(rows.device, non_blocking=True) for each in (torch.cos(angle), torch.sin(angle)))
    y, x = rows - (size[0] - 1) / 2.0, columns - (size[1] - 1) / 2.0
    rotated_y = cos * y + sin * x
    rotated_x = cos * x - sin * y
    return (
        (rotated_y + (size[0] - 1) / 2.0).round().long(),
        (rotated_x + (size[1] - 1) / 2.0).round().long(),
    )


def _squares(
    shape: tuple[int, int, int], side: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Mask of the cutout of each image: ``bool [N, H, W]``; a square may extend beyond the edge."""
    n, height, width = shape
    top = torch.randint(0, height, (n, 1, 1), generator=generator) - side // 2
    left = torch.randint(0, width, (n, 1, 1), generator=generator) - side // 2
    top, left = (corner.to(device, non_blocking=True) for corner in (top, left))
    rows = torch.arange(height, device=device).view(1, -1, 1)
    columns = torch.arange(width, device=device).view(1, 1, -1)
    return (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
