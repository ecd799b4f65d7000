"""The orientation of an image, read from its EXIF entry even where other entries are broken."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

ORIENTATION = 274
"""Tag of the orientation in EXIF and TIFF."""

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
"""TIFF types that store a whole number in the entry itself, with their ``struct`` formats."""

_ENTRY_BYTES = 12


def orientation(opened: ImageFile) -> Any:
    """The EXIF orientation of a loaded image, from 2 to 8; any other value means upright.

    Pillow's ``exif_transpose`` rewrites the whole EXIF, and fails if any entry is broken.
    """
    exif = opened.info.get("exif")
    found = in_exif(exif) if isinstance(exif, bytes) else None
    if found is not None:
        return found
    try:
        return opened.getexif().get(ORIENTATION)  # from XMP, or from the text of a PNG
    except Exception:  # a broken entry: the image is taken as upright
        return None


def in_exif(exif: bytes) -> int | None:
    """The orientation in EXIF data; None where it has none, or is truncated before it."""
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


def upright(image: Image.Image, value: Any) -> Image.Image:
    """Rotate or mirror an image from its orientation to upright."""
    method = _METHODS.get(value) if isinstance(value, int) else None
    return image if method is None else image.transpose(method)
