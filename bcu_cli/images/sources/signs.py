"""Built-in images of road signs, drawn by code for the demo and the tests. Needs no torch.

There are eight classes of signs. Position, size, angle, brightness, contrast, blur and background are random.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIDE = 32
_DRAWN = 128  # drawn large and then reduced, for smooth edges

_RED, _BLUE, _YELLOW, _WHITE, _BLACK = "#c1121f", "#1d4ed8", "#f6c90e", "#f8f8f4", "#1a1a1a"


def _polygon(corners: int, radius: float, turn: float = 0.0) -> list[tuple[float, float]]:
    angles = (turn + 2 * math.pi * i / corners for i in range(corners))
    middle = _DRAWN / 2
    return [(middle + radius * math.sin(angle), middle - radius * math.cos(angle)) for angle in angles]


def _disc(draw: ImageDraw.ImageDraw, radius: float, fill: str) -> None:
    draw.circle((_DRAWN / 2, _DRAWN / 2), radius, fill=fill)


def _text(draw: ImageDraw.ImageDraw, text: str, size: int, fill: str) -> None:
    draw.text((_DRAWN / 2, _DRAWN / 2), text, fill=fill, anchor="mm", font=ImageFont.load_default(size))


def _stop(draw: ImageDraw.ImageDraw) -> None:
    draw.polygon(_polygon(8, 58, math.pi / 8), fill=_RED, outline=_WHITE, width=4)
    _text(draw, "STOP", 36, _WHITE)


def _yield(draw: ImageDraw.ImageDraw) -> None:
    draw.polygon(_polygon(3, 60, math.pi), fill=_RED)
    draw.polygon(_polygon(3, 34, math.pi), fill=_WHITE)


def _no_entry(draw: ImageDraw.ImageDraw) -> None:
    _disc(draw, 56, _RED)
    draw.rectangle((26, 54, 102, 74), fill=_WHITE)


def _speed(limit: str) -> Callable[[ImageDraw.ImageDraw], None]:
    def draw_sign(draw: ImageDraw.ImageDraw) -> None:
        _disc(draw, 57, _RED)
        _disc(draw, 44, _WHITE)
        _text(draw, limit, 58, _BLACK)

    return draw_sign


def _priority(draw: ImageDraw.ImageDraw) -> None:
    draw.polygon(_polygon(4, 60), fill=_WHITE)
    draw.polygon(_polygon(4, 46), fill=_YELLOW)


def _ahead(draw: ImageDraw.ImageDraw) -> None:
    _disc(draw, 57, _BLUE)
    draw.polygon([(64, 20), (94, 56), (34, 56)], fill=_WHITE)
    draw.rectangle((55, 54, 73, 106), fill=_WHITE)


def _danger(draw: ImageDraw.ImageDraw) -> None:
    draw.polygon(_polygon(3, 62), fill=_RED)
    draw.polygon(_polygon(3, 42), fill=_WHITE)
    draw.rectangle((58, 46, 70, 72), fill=_BLACK)
    draw.rectangle((58, 76, 70, 86), fill=_BLACK)


CLASSES: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "ahead-only": _ahead,
    "danger": _danger,
    "no-entry": _no_entry,
    "priority": _priority,
    "speed-30": _speed("30"),
    "speed-80": _speed("80"),
    "stop": _stop,
    "yield": _yield,
}
"""The function that draws the sign of each class, in label order."""


def draw(name: str, rng: random.Random) -> Image.Image:
    """Draw one image of the class ``name``: RGB, ``SIDE`` x ``SIDE`` pixels."""
    image = _background(rng)
    sign = Image.new("RGBA", (_DRAWN, _DRAWN))
    CLASSES[name](ImageDraw.Draw(sign))
    size = round(_DRAWN * rng.uniform(0.68, 0.95))
    sign = sign.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC).resize((size, size))
    room = _DRAWN - size
    image.paste(sign, (round(rng.uniform(0, room)), round(rng.uniform(0, room))), sign)
    small = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    small = ImageEnhance.Brightness(small).enhance(rng.uniform(0.45, 1.25))
    small = ImageEnhance.Contrast(small).enhance(rng.uniform(0.6, 1.2))
    return small.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.8)))


def _background(rng: random.Random) -> Image.Image:
    """A coarse random pattern between two colours, like sky over ground or leaves."""
    grid = Image.new("RGB", (6, 6))
    top, bottom = (tuple(rng.randint(30, 220) for _ in range(3)) for _ in range(2))
    for y in range(6):
        for x in range(6):
            share = y / 5
            colour = [
                round(a + (b - a) * share + rng.uniform(-35, 35)) for a, b in zip(top, bottom, strict=True)
            ]
            grid.putpixel((x, y), tuple(colour))
    return grid.resize((_DRAWN, _DRAWN), Image.Resampling.BICUBIC)


def write_folder(root: Path, per_class: int, *, seed: int, labelled: bool = True) -> None:
    """Draw ``per_class`` PNG files of each class.

    Args:
        root: The folder, which is created if it is missing.
        per_class: Number of images per class.
        seed: Seed of the random images.
        labelled: Whether each class gets a subfolder with its name; else all files are in one folder, in
            random order.
    """
    rng = random.Random(seed)  # noqa: S311 - images are no secret
    names = [name for name in CLASSES for _ in range(per_class)]
    rng.shuffle(names)
    for number, name in enumerate(names):
        folder = root / name if labelled else root
        folder.mkdir(parents=True, exist_ok=True)
        draw(name, rng).save(folder / f"{number:05d}.png")
