"""Images that show a trigger: each image clean, triggered, and their difference."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont

from bcu_cli.checkpoints import atomic_write, sha256_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from bcu_cli.triggers.base import Trigger

COLUMNS = 8
SMALLEST_SIDE = 64
MOST_LOSSLESS = 64 * 64
"""Most pixels of an image that a page holds without loss."""
GAP = 4
MARGIN = 112
"""Width of the row names at the left, in pixels."""
GAIN = 10
"""Amplification of the difference, which is clipped at white."""
ROWS = ("clean", "triggered", f"difference x{GAIN}")  # Pillow's default font has no ×
_BACKGROUND, _INK = "#ffffff", "#202020"
_FONT_SIZE = 14
_JPEG: dict[str, Any] = {"quality": 90, "subsampling": 0}


def write_sheet(trigger: Trigger, images: Tensor, path: Path) -> str:
    """Write a PNG that shows a trigger on up to ``COLUMNS`` images of a set; returns the file's SHA-256.

    Args:
        trigger: The trigger.
        images: Images, uint8 ``[N, C, H, W]``.
        path: The file to write; it is replaced atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    chosen = images[:: max(1, len(images) // COLUMNS)][:COLUMNS]
    with atomic_write(path) as file:
        sheet(trigger, chosen).save(file, format="PNG")
    return sha256_of(path)


def write_image(pixels: Tensor, path: Path) -> str:
    """Write one image, float ``[C, H, W]`` in [0, 1] with C 1 or 3, as PNG; returns the file's SHA-256.

    An image smaller than ``SMALLEST_SIDE`` is enlarged by an integer factor.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_write(path) as file:
        _enlarged(pixels).save(file, format="PNG")
    return sha256_of(path)


def data_uri(pixels: Tensor) -> str:
    """One image, as :func:`write_image` takes it, as a ``data:`` URI for a page.

    It is a PNG, or a JPEG where it has more than ``MOST_LOSSLESS`` pixels: a page holds up to a hundred.
    """
    buffer = io.BytesIO()
    kind, how = ("jpeg", _JPEG) if pixels[0].numel() > MOST_LOSSLESS else ("png", {})
    _enlarged(pixels).save(buffer, format=kind, **how)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _enlarged(pixels: Tensor) -> Image.Image:
    height, width = pixels.shape[-2:]
    scale = _scale(height, width)
    picture = _picture((pixels * 255.0).round().to(torch.uint8))
    return picture.resize((scale * width, scale * height), Image.Resampling.NEAREST)


def sheet(trigger: Trigger, images: Tensor) -> Image.Image:
    """An image with a column (clean, triggered, difference) for each image, uint8 ``[N, C, H, W]``.

    C is 1 or 3. Images smaller than ``SMALLEST_SIDE`` are enlarged by an integer factor.
    """
    triggered = trigger.apply_to_bytes(images)
    difference = (triggered.int() - images.int()).abs().mul(GAIN).clamp(max=255).to(torch.uint8)
    height, width = images.shape[-2:]
    scale = _scale(height, width)
    height, width = scale * height, scale * width
    size = (MARGIN + len(images) * (width + GAP), GAP + len(ROWS) * (height + GAP))
    drawn = Image.new("RGB", size, _BACKGROUND)
    write = ImageDraw.Draw(drawn)
    for row, (name, pictures) in enumerate(zip(ROWS, (images, triggered, difference), strict=True)):
        top = GAP + row * (height + GAP)
        font = ImageFont.load_default(_FONT_SIZE)
        write.text((GAP, top + height / 2), name, fill=_INK, anchor="lm", font=font)
        for column, picture in enumerate(pictures):
            enlarged = _picture(picture).resize((width, height), Image.Resampling.NEAREST)
            drawn.paste(enlarged, (MARGIN + column * (width + GAP), top))
    return drawn


def _scale(height: int, width: int) -> int:
    return max(1, -(-SMALLEST_SIDE // min(height, width)))


def _picture(pixels: Tensor) -> Image.Image:
    """uint8 ``[C, H, W]`` as an image; one channel is grey."""
    rgb = pixels.cpu().expand(3, -1, -1).permute(1, 2, 0).contiguous()
    return Image.fromarray(rgb.numpy())
