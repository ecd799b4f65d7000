"""Scaling of images with more than 8 bits, or with floating-point values, to 8 bits.

Pillow clips or wraps values that do not fit. The file does not say which value is white: a camera stores 12
bits in 16, and floating-point images range to 1, to 255 or to any number. So the range is inferred from the
values, and the user is given a note of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bcu_cli.images.decoding.unreadable import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

WHOLE_RANGES = (255, 4095, 65535)
"""Ranges of whole numbers of 8, 12 and 16 bits; values outside all of them are stretched."""

FRACTION_RANGES = (1, 255)
"""Ranges of floating-point values; values outside all of them are stretched."""

MOST = 1e38
"""Values beyond this mark missing measurements, as the lowest float32 does in maps."""

MISSING = "NaN, infinite and missing values become the least value"
STRETCHED = "values are stretched from each image's own least and largest to 0 to 255"

_WHITE_IS_ZERO, _PHOTOMETRIC, _BITS, _SAMPLE_FORMAT, _NO_DATA = 0, 262, 258, 339, 42113


def range_note(most: int) -> str:
    """The note for images whose values range from 0 to ``most``."""
    return "values are kept as of 8 bits" if most == 255 else f"values of 0 to {most} are scaled to 0 to 255"


def to_eight_bits(opened: ImageFile, on_note: Callable[[str], None]) -> Image.Image:
    """Load an image and convert it to 8 bits per channel.

    Args:
        opened: An image of any mode, not loaded yet.
        on_note: Called with how values of more than 8 bits were scaled.

    Raises:
        UnreadableError: No value is finite, or 16-bit colours would lose nearly all of their values.
    """
    deep_colours = any(";16" in str(tile) for tile in opened.tile)  # Pillow keeps their upper 8 bits
    opened.load()
    if opened.mode != "F" and not opened.mode.startswith("I"):
        if deep_colours:
            _refuse_lost(opened)
        return opened
    tags = dict(getattr(opened, "tag_v2", {}))
    values = _values(opened, tags)
    values = _filled(values, _no_data(tags), on_note)
    low, high = values.min(), values.max()
    least, most = _range(low, high, whole=opened.mode != "F", bits=_first(tags.get(_BITS)))
    on_note(STRETCHED if most is None else range_note(most))
    span = float(high) - float(least) if most is None else most
    scaled = (values - values.dtype.type(least)) * values.dtype.type(255.0 / (span or 1.0))
    if _first(tags.get(_PHOTOMETRIC)) == _WHITE_IS_ZERO and opened.format == "TIFF":
        scaled = 255.0 - scaled
    return Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))


def _refuse_lost(opened: Image.Image) -> None:
    """Raise ``UnreadableError`` for 16-bit colours whose upper 8 bits are nearly 0, as a camera's 12 bits."""
    bands = [band for band in opened.getbands() if band not in "Aa"]
    if max(opened.getchannel(band).getextrema()[1] for band in bands) < 16:  # type: ignore[operator]
        raise UnreadableError("its 16-bit colours are all below 4,096, and only their upper 8 bits are read")


def _values(opened: Image.Image, tags: dict[int, Any]) -> NDArray[Any]:
    """The pixels as floating-point numbers, ``[H, W]``; float64 for whole numbers, which stay exact."""
    array = np.asarray(opened)
    if opened.mode == "I" and _first(tags.get(_BITS)) == 32 and _first(tags.get(_SAMPLE_FORMAT, 1)) == 1:
        array = array.view(np.uint32)  # Pillow reads unsigned numbers as signed
    return array.astype(np.float64 if opened.mode == "I" else np.float32)


def _filled(values: NDArray[Any], no_data: float | None, on_note: Callable[[str], None]) -> NDArray[Any]:
    """Replace infinity by the largest value, and NaN and missing values by the smallest."""
    there = np.abs(values) < MOST  # False for NaN
    if no_data is not None:
        there &= values != values.dtype.type(no_data)
    if there.all():
        return values
    if not there.any():
        raise UnreadableError("it holds no value that is a finite number")
    on_note(MISSING)
    low, high = values[there].min(), values[there].max()
    return np.where(there, values, np.where(values == np.inf, high, low))


def _range(low: float, high: float, *, whole: bool, bits: Any) -> tuple[float, int | None]:
    """The value that becomes 0, and the largest possible value; None for the largest in the image."""
    if low < 0:
        return low, None
    for most in WHOLE_RANGES if whole else FRACTION_RANGES:
        if high <= most and not (bits == 12 and most == 255):
            return 0.0, most
    return low, None


def _no_data(tags: dict[int, Any]) -> float | None:
    """The value that marks missing data, as GDAL writes it; None where there is none."""
    try:
        return float(str(tags[_NO_DATA]).strip(" \0"))
    except (KeyError, ValueError):
        return None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value
