"""Which way up an image is, by the one entry of its EXIF that says so; whatever else is broken there."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

ORIENTATION = 274
"""The tag of EXIF and TIFF."""

_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NUMBERS = {1: "B", 3: "H", 4: "I"}
"""Types of a TIFF entry that hold a whole number in the entry itself."""

_ENTRY_BYTES = 12


def orientation(opened: ImageFile) -> Any:
    """How a loaded image is to be turned, from 2 to 8; anything else is not at all.

    Pillow's own function rewrites the whole EXIF, and fails where any entry of it is broken.
    """
    exif = opened.info.get("exif")
    found = in_exif(exif) if isinstance(exif, bytes) else None
    if found is not None:
        return found
    try:
        return opened.getexif().get(ORIENTATION)  # of XMP, or of a PNG's text
    except Exception:  # a broken entry, which says nothing of the pixels: shown as it lies
        return None


def in_exif(exif: bytes) -> int | None:
    """The orientation that EXIF says; None where it says none, or is cut short in front of it."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for number in range(count):
            at = start + 2 + number * _ENTRY_BYTES
            tag, kind = struct.unpack_from(f"{order}HH", data, at)
            if tag == ORIENTATION and kind in _NUMBERS:
                return int(struct.unpack_from(order + _NUMBERS[kind], data, at + 8)[0])
    except struct.error:
        return None
    return None


def turned(picture: Image.Image, way: Any) -> Image.Image:
    """An image turned upright from an orientation."""
    method = _METHODS.get(way) if isinstance(way, int) else None
    return picture if method is None else picture.transpose(method)
