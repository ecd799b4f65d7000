"""Augmentation of whole batches on the device: one gather, nothing per image in Python."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random crop of the zero-padded image, then a mirror image for half of them.

    Args:
        crop_padding: Pixels of zeros added on each side before the crop; 0 for no crop.
        flip: Whether a mirrored image is still of its class (photos yes, traffic signs and digits no).
    """

    crop_padding: int = 4
    flip: bool = True


def augment(images: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """A random view of each image.

    Args:
        images: ``[N, C, H, W]`` of any dtype, on any device.
        options: What may happen to them.
        generator: On the CPU, so that the views do not depend on the device.

    Returns:
        ``[N, C, H, W]``, same dtype and device.
    """
    n, channels, height, width = images.shape
    padding = options.crop_padding
    rows = torch.arange(height).expand(n, height)  # [N, H], columns likewise [N, W]
    columns = torch.arange(width).expand(n, width)
    if padding:
        rows = rows + torch.randint(0, 2 * padding + 1, (n, 1), generator=generator)
        columns = columns + torch.randint(0, 2 * padding + 1, (n, 1), generator=generator)
        images = torch.nn.functional.pad(images, (padding,) * 4)
    if options.flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    if not padding and not options.flip:
        return images
    wide = images.shape[-1]
    index = (rows[:, :, None] * wide + columns[:, None, :]).reshape(n, 1, height * width)
    index = index.to(images.device, non_blocking=True).expand(n, channels, height * width)
    return images.flatten(2).gather(2, index).view(n, channels, height, width)
