"""The height and width that all images of a set have, read from their headers."""

from __future__ import annotations

import stat
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bcu_cli.images.decoding.image import FORMATS, Member

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bcu_cli.images.decoding.image import RawImage

_LOOKED_AT = 256


def common_side(images: Sequence[RawImage]) -> int | None:
    """Height and width in pixels, if at most 256 images, spread evenly, are square and of one size.

    Unreadable images are left out. Image data is not decoded.

    Returns:
        The side; None if the images differ, are not square, or none is readable.
    """
    chosen = images[:: max(1, len(images) // _LOOKED_AT)][:_LOOKED_AT]
    shapes = {shape for shape in map(_shape, chosen) if shape is not None}
    if len(shapes) != 1:
        return None
    width, height = shapes.pop()
    return width if width == height else None


def _shape(image: RawImage) -> tuple[int, int] | None:
    """Width and height in pixels; None for a file that is no readable image."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    try:
        return _shape_of_file(image)
    except Exception:  # on damaged bytes, decoders raise exceptions of any type
        return None


def _shape_of_file(image: Path | Member) -> tuple[int, int] | None:
    if isinstance(image, Member):
        file: Path | BytesIO = BytesIO(image.read())
    elif stat.S_ISREG(image.stat().st_mode):  # a pipe would never end
        file = image
    else:
        return None
    with Image.open(file, formats=FORMATS) as opened:
        return opened.size
