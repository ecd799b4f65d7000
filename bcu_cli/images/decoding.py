"""One image, a file or an array -> one uint8 array of the size that a network takes.

Imports Pillow and NumPy only, never torch: the processes that decode a folder start with this module.
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
from bcu_cli.images.orientation import orientation, turned
from bcu_cli.images.scaling import to_eight_bits
from bcu_cli.images.unreadable import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What a folder of photos holds, and PPM for GTSRB's; Pillow's other decoders are never tried."""

FORMATS_HINT = "JPEG, PNG, WebP, BMP, GIF, TIFF and PPM are read"

MOST_BYTES = 2**29
"""Bytes of a file or a member of an archive. Pillow refuses images whose pixels alone take that."""

MOST_ASPECT = 100
"""Long side over short side of an image; what is longer shows nothing once its centre is cut out."""

_LONGEST_REASON = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """An image in an archive that is not compressed.

    Args:
        path: The archive.
        offset: Where it begins there.
        size: In bytes.
        name: What the archive calls it.
    """

    path: Path
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            OSError: The archive cannot be read.
            UnreadableError: It has more bytes than an image has.
        """
        _refuse_size(self.size)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            return file.read(self.size)


Picture: TypeAlias = "Path | Member | NDArray[np.uint8]"
"""A file, a member of an archive, or pixels: uint8 ``[H, W, 3]``."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How any image becomes a network's input: resized, then the centre cut out.

    Args:
        channels: 3 for RGB, 1 for grey.
        height: Rows of the result.
        width: Columns of the result.
        crop_pct: Share of the resized image that is kept, in (0, 1].
        crop_mode: ``center`` resizes the shorter side and keeps the shape of the image; ``squash`` resizes
            each side to its share of the result.
        interpolation: The name of one of Pillow's resampling filters, such as ``bilinear``.

    Raises:
        ImagesError: No image has so many channels.
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
                f"the model takes {self.channels} channels, the images have 3",
                "images are read as RGB, or as grey for a model of one channel; without images, bcu inspect "
                "and methods that need none take such a model",
            )

    @property
    def bytes(self) -> int:
        """Of one image, decoded."""
        return self.channels * self.height * self.width


def decode(
    picture: Picture, geometry: Geometry, *, on_note: Callable[[str], None] = lambda _: None
) -> NDArray[np.uint8]:
    """Read one image as a network wants it.

    The orientation in EXIF is honoured, of an animation the first frame counts, grey of more than 8 bits is
    scaled by its values, and what is transparent is laid on white, as a viewer would show it.

    Args:
        picture: What to read.
        geometry: What it becomes.
        on_note: Called with how its values were scaled, where they are not of 8 bits.

    Returns:
        uint8 ``[C, H, W]``.

    Raises:
        UnreadableError: It is no image that can be read, for whatever reason a decoder gives.
    """
    try:
        if isinstance(picture, np.ndarray):
            return _fit(Image.fromarray(picture), geometry)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode_file(picture, geometry, on_note)
    except UnreadableError:
        raise
    except MemoryError as error:
        raise UnreadableError("it takes more memory to decode than an image should") from error
    except Exception as error:  # decoders fail in every way on bytes that nobody foresaw
        raise UnreadableError(f"{type(error).__name__}: {error}"[:_LONGEST_REASON]) from error


def _decode_file(
    picture: Path | Member, geometry: Geometry, on_note: Callable[[str], None]
) -> NDArray[np.uint8]:
    if not isinstance(picture, Member):
        found = picture.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would never end
            raise UnreadableError("it is no regular file")
        _refuse_size(found.st_size)
    file = BytesIO(picture.read()) if isinstance(picture, Member) else picture
    with Image.open(file, formats=FORMATS) as opened:
        _refuse_shape(opened)
        if opened.format == "JPEG":  # decodes at 1/2, 1/4 or 1/8 where that is still large enough
            side = round(max(geometry.height, geometry.width) / geometry.crop_pct)
            opened.draft(None, (side * 2, side * 2))
        return _fit(turned(to_eight_bits(opened, on_note), orientation(opened)), geometry)


def _refuse_size(size: int) -> None:
    if size > MOST_BYTES:
        raise UnreadableError(f"{size:,} bytes are no image")


def _refuse_shape(opened: Image.Image) -> None:
    """Refuse by its header an image that is far longer than wide, or the other way round."""
    short, long = sorted(opened.size)
    if long > MOST_ASPECT * short:
        raise UnreadableError(f"{opened.width:,} x {opened.height:,} pixels are no shape of a photo")


def _fit(picture: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
    flat = _in_mode(picture, "L" if geometry.channels == 1 else "RGB")
    array = np.asarray(_resize_and_crop(flat, geometry), dtype=np.uint8)
    return np.array(array[None] if array.ndim == 2 else array.transpose(2, 0, 1), order="C")


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Grey or RGB, with what is transparent laid on white."""
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture if picture.mode == mode else picture.convert(mode)


def _resize_and_crop(picture: Image.Image, geometry: Geometry) -> Image.Image:
    height, width = geometry.height, geometry.width
    columns, rows = round(width / geometry.crop_pct), round(height / geometry.crop_pct)
    if geometry.crop_mode == "squash":
        size = (columns, rows)
    elif height * picture.width >= width * picture.height:  # rounded down, as torchvision does
        size = (max(width, rows * picture.width // picture.height), rows)
    else:
        size = (columns, max(height, columns * picture.height // picture.width))
    most = Image.MAX_IMAGE_PIXELS or 0
    if size[0] * size[1] > max(most, height * width):
        raise UnreadableError(f"it would take {size[0]:,} x {size[1]:,} pixels to cut the centre out of it")
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling[geometry.interpolation.upper()])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))
