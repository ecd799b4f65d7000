"""One picture, a file or an array -> one uint8 array of the size that a network takes.

Imports Pillow and NumPy only, never torch: the processes that decode a folder start with this module.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from os import cpu_count
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from bcu_cli.errors import ImagesError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What a folder of photos holds, and PPM for GTSRB's; Pillow's other decoders are never tried."""

FORMATS_HINT = "JPEG, PNG, WebP, BMP, GIF, TIFF and PPM are read"

Picture: TypeAlias = "Path | NDArray[np.uint8]"
"""A file, or pixels: uint8 ``[H, W, 3]``."""

FILES_PER_TASK = 64
FILES_WORTH_PROCESSES = 1024
"""Below this, starting processes takes longer than decoding; measured with 32x32 JPEGs on two cores."""

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombWarning,
    Image.DecompressionBombError,
)
"""What Pillow raises for a file that is no picture, or one too large to be taken for a photo."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How any picture becomes a network's input: the shorter side resized, then the centre cut out.

    Args:
        channels: 3 for RGB, 1 for grey.
        height: Rows of the result.
        width: Columns of the result.
        crop_pct: Share of the resized picture that is kept, in (0, 1].
        interpolation: The name of one of Pillow's resampling filters, such as ``bilinear``.
    """

    channels: int = 3
    height: int
    width: int
    crop_pct: float = 1.0
    interpolation: str = "bilinear"


def decode(picture: Picture, geometry: Geometry) -> NDArray[np.uint8]:
    """Read one picture as a network wants it.

    EXIF rotation is honoured, of an animation the first frame counts, 16-bit and floating-point grey are
    scaled to 8 bits, and what is transparent is laid on white, as a viewer would show it.

    Returns:
        uint8 ``[C, H, W]``.

    Raises:
        One of ``UNREADABLE``: Not a picture that can be read.
    """
    if isinstance(picture, np.ndarray):
        return _fit(Image.fromarray(picture), geometry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(picture, formats=FORMATS) as opened:
            if opened.format == "JPEG":  # decodes at 1/2, 1/4 or 1/8 where that is still large enough
                side = round(max(geometry.height, geometry.width) / geometry.crop_pct)
                opened.draft(None, (side * 2, side * 2))
            return _fit(ImageOps.exif_transpose(opened), geometry)


def _fit(picture: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
    flat = _to_eight_bits(picture, "L" if geometry.channels == 1 else "RGB")
    array = np.asarray(_resize_and_crop(flat, geometry), dtype=np.uint8)
    return np.array(array[None] if array.ndim == 2 else array.transpose(2, 0, 1), order="C")


def _to_eight_bits(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        if picture.mode == "F":
            low, high = float(values.min()), float(values.max())
            values = (values - low) / (high - low or 1.0) * 255.0
        elif picture.mode != "I" or values.max() > 255:  # "I" may hold 8 bits already
            values = values / 257.0
        picture = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture if picture.mode == mode else picture.convert(mode)


def _resize_and_crop(picture: Image.Image, geometry: Geometry) -> Image.Image:
    height, width = geometry.height, geometry.width
    scale = max(height / picture.height, width / picture.width) / geometry.crop_pct
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling[geometry.interpolation.upper()])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))


def decode_many(
    pictures: Sequence[Picture], geometry: Geometry, *, on_progress: Callable[[int], None] | None = None
) -> tuple[NDArray[np.uint8], list[int], list[tuple[int, str]]]:
    """Decode pictures in several processes, in their order.

    Args:
        pictures: Files or arrays.
        geometry: What each becomes.
        on_progress: Called with the number of pictures decoded since the last call.

    Returns:
        The pictures, uint8 ``[N, C, H, W]``; the index into ``pictures`` of each; and the indices of those
        that are no readable picture, with the reason.

    Raises:
        ImagesError: A decoding process died (out of memory, or a fault in a decoder).
    """
    decoded = np.empty((len(pictures), geometry.channels, geometry.height, geometry.width), dtype=np.uint8)
    kept: list[int] = []
    skipped: list[tuple[int, str]] = []
    position = 0
    for results in _decode_batches(pictures, geometry):
        for result in results:
            if isinstance(result, str):
                skipped.append((position, result))
            else:
                decoded[len(kept)] = result
                kept.append(position)
            position += 1
        if on_progress:
            on_progress(len(results))
    return decoded[: len(kept)], kept, skipped


def _decode_batches(
    pictures: Sequence[Picture], geometry: Geometry
) -> Iterator[list[NDArray[np.uint8] | str]]:
    starts = range(0, len(pictures), FILES_PER_TASK)
    tasks = [(pictures[start : start + FILES_PER_TASK], geometry) for start in starts]
    workers = min(cpu_count() or 1, len(tasks))
    if len(pictures) < FILES_WORTH_PROCESSES or workers < 2:
        yield from map(_decode_batch, tasks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(_decode_batch, tasks)
    except BrokenProcessPool as error:
        raise ImagesError(
            "a process that decoded the images died", "look for a huge or damaged file, or free some memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_batch(task: tuple[Iterable[Picture], Geometry]) -> list[NDArray[np.uint8] | str]:
    """Decode some pictures; in place of one that is no picture stands the reason."""
    pictures, geometry = task
    results: list[NDArray[np.uint8] | str] = []
    for picture in pictures:
        try:
            results.append(decode(picture, geometry))
        except UNREADABLE as error:
            results.append(f"{type(error).__name__}: {error}")
    return results
