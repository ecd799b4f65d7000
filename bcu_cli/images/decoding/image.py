"""Decoding of one image to a uint8 array of the size that a network takes.

This module imports Pillow and NumPy only, never torch, because every decoding process imports it.
"""

from __future__ import annotations

import stat
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding.orientation import orientation, upright
from bcu_cli.images.decoding.scaling import to_eight_bits
from bcu_cli.images.decoding.unreadable import UnreadableError
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are decoded (PPM for GTSRB); Pillow's other decoders are never tried."""

FORMATS_HINT = "JPEG, PNG, WebP, BMP, GIF, TIFF and PPM are read"

MOST_BYTES = 2**29
"""Most bytes of a file or a member of an archive. Pillow refuses images whose pixels take that many."""

MOST_ASPECT = 100
"""Largest ratio of the long side to the short side; the centre crop of a longer image shows too little."""

_LONGEST_REASON = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """An image in an uncompressed archive.

    Args:
        path: The archive.
        offset: Offset of the image in the archive, in bytes.
        size: Size of the image in bytes.
        name: Name of the image in the archive.
    """

    path: Path
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """Read the bytes of the image.

        Raises:
            OSError: The archive cannot be read.
            UnreadableError: The image has more than ``MOST_BYTES``.
        """
        _refuse_size(self.size)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            return file.read(self.size)


RawImage: TypeAlias = "Path | Member | NDArray[np.uint8]"
"""An image before it is decoded: a file, a member of an archive, or pixels, uint8 ``[H, W, 3]``."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Size and cropping of a network's input: an image is resized, and its centre cut out.

    Args:
        channels: 3 for RGB, 1 for grey.
        height: Rows of the result.
        width: Columns of the result.
        crop_pct: Share of the resized image that is kept, in (0, 1].
        crop_mode: ``center`` resizes the shorter side and keeps the shape of the image; ``squash`` resizes
            each side to its share of the result.
        interpolation: The name of one of Pillow's resampling filters, such as ``bilinear``.

    Raises:
        ImagesError: The number of channels is neither 1 nor 3.
    """

    channels: int = 3
    height: int
    width: int
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.channels not in {1, 3}:
            raise ImagesError(
                f"the model takes {number_of(self.channels, 'channel')}, the images have 3",
                "images are read as RGB, or as grey for a model of one channel; without images, bcu inspect "
                "and methods that need none take such a model",
            )

    @property
    def bytes(self) -> int:
        """Bytes of one decoded image."""
        return self.channels * self.height * self.width


def decode(
    image: RawImage, geometry: Geometry, *, on_note: Callable[[str], None] = lambda _: None
) -> NDArray[np.uint8]:
    """Decode one image to the size that a network takes.

    The EXIF orientation is applied. An animation gives its first frame. Grey values of more than 8 bits are
    scaled to 8 bits. Transparent pixels are laid on white, as a viewer would show them.

    Args:
        image: The image before decoding.
        geometry: Size and cropping of the result.
        on_note: Called with how values of more than 8 bits were scaled.

    Returns:
        uint8 ``[C, H, W]``.

    Raises:
        UnreadableError: The image cannot be decoded; the message gives the decoder's reason.
    """
    try:
        if isinstance(image, np.ndarray):
            return _fit(Image.fromarray(image), geometry)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode_file(image, geometry, on_note)
    except UnreadableError:
        raise
    except MemoryError as error:
        raise UnreadableError("it takes more memory to decode than an image should") from error
    except Exception as error:  # on damaged bytes, decoders raise exceptions of any type
        raise UnreadableError(f"{type(error).__name__}: {error}"[:_LONGEST_REASON]) from error


def _decode_file(
    image: Path | Member, geometry: Geometry, on_note: Callable[[str], None]
) -> NDArray[np.uint8]:
    if not isinstance(image, Member):
        found = image.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would never end
            raise UnreadableError("it is no regular file")
        _refuse_size(found.st_size)
    file = BytesIO(image.read()) if isinstance(image, Member) else image
    with Image.open(file, formats=FORMATS) as opened:
        _refuse_shape(opened)
        if opened.format == "JPEG":  # is decoded at 1/2, 1/4 or 1/8 where that is large enough
            side = round(max(geometry.height, geometry.width) / geometry.crop_pct)
            opened.draft(None, (side * 2, side * 2))
        return _fit(upright(to_eight_bits(opened, on_note), orientation(opened)), geometry)


def _refuse_size(size: int) -> None:
    if size > MOST_BYTES:
        raise UnreadableError(f"{size:,} bytes are no image")


def _refuse_shape(opened: Image.Image) -> None:
    """Refuse an image by its header if one side is more than ``MOST_ASPECT`` times as long as the other."""
    short, long = sorted(opened.size)
    if long > MOST_ASPECT * short:
        raise UnreadableError(f"{opened.width:,} x {opened.height:,} pixels are no shape of a photo")


def _fit(image: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
    flat = in_mode(image, "L" if geometry.channels == 1 else "RGB")
    array = np.asarray(_resize_and_crop(flat, geometry), dtype=np.uint8)
    return np.array(array[None] if array.ndim == 2 else array.transpose(2, 0, 1), order="C")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to grey or RGB, with transparent pixels laid on white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == mode else image.convert(mode)


def _resize_and_crop(image: Image.Image, geometry: Geometry) -> Image.Image:
    height, width = geometry.height, geometry.width
    columns, rows = round(width / geometry.crop_pct), round(height / geometry.crop_pct)
    if geometry.crop_mode == "squash":
        size = (columns, rows)
    elif height * image.width >= width * image.height:  # rounded down, as torchvision does
        size = (max(width, rows * image.width // image.height), rows)
    else:
        size = (columns, max(height, columns * image.height // image.width))
    most = Image.MAX_IMAGE_PIXELS or 0
    if size[0] * size[1] > max(most, height * width):
        raise UnreadableError(f"it would take {size[0]:,} x {size[1]:,} pixels to cut the centre out of it")
    if size != image.size:
        image = image.resize(size, Image.Resampling[geometry.interpolation.upper()])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
