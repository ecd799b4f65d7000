"""An image is turned by its orientation alone, however broken the rest of its EXIF is."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from bcu_cli.images.decoding.image import Geometry, decode
from bcu_cli.images.decoding.orientation import in_exif
from bcu_cli.images.folder import load_unlabeled

if TYPE_CHECKING:
    from pathlib import Path

SIZE = Geometry(height=16, width=16)
Entry = tuple[int, int, int, bytes]
"""Tag, type, count, and the bytes of the value."""

TURN = (274, 3, 1, struct.pack("<H", 6))
"""To be turned clockwise by 90°: left becomes top."""

BROKEN: dict[str, list[Entry]] = {
    "resolution of -1/0": [TURN, (282, 10, 1, struct.pack("<ii", -1, 0))],
    "resolution as a text": [TURN, (282, 2, 4, b"72\0\0")],
    "unit as a byte": [TURN, (296, 1, 1, b"\2")],
    "maker as a fraction": [(271, 5, 1, struct.pack("<II", 1, 1)), TURN],
    "XMP as a text": [TURN, (700, 2, 9, b"<x:xmp/>\0")],
    "pointer to nowhere": [TURN, (34665, 4, 1, struct.pack("<I", 2**31))],
    "pointer as a text": [TURN, (34853, 2, 4, b"abc\0")],
    "maker beyond the end": [(271, 2, 2**30, bytes(8)), TURN],
    "type of no kind": [(270, 99, 7, b"\1\2\3\4"), TURN],
}


def exif(entries: list[Entry], order: str = "<") -> bytes:
    """EXIF of one directory."""
    offset, blob = 8 + 2 + 12 * len(entries) + 4, b""
    head = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, data in entries:
        value = data.ljust(4, b"\0")
        if len(data) > 4:
            value = struct.pack(f"{order}I", offset + len(blob))
            blob += data
        head += struct.pack(f"{order}HHI", tag, kind, count) + value
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + mark + struct.pack(f"{order}I", 8) + head + bytes(4) + blob


def photo() -> Image.Image:
    """White on the left, black on the right."""
    picture = Image.new("RGB", (48, 48), "black")
    picture.paste((255, 255, 255), (0, 0, 24, 48))
    return picture


def is_turned(array: np.ndarray) -> bool:
    return bool(array[0, 1, 14] > 200 > 60 > array[0, 14, 1])


def lies(array: np.ndarray) -> bool:
    return bool(array[0, 14, 1] > 200 > 60 > array[0, 1, 14])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_entry_beside_the_orientation(tmp_path: Path, name: str, suffix: str) -> None:
    photo().save(tmp_path / f"a.{suffix}", exif=exif(BROKEN[name]))
    assert is_turned(decode(tmp_path / f"a.{suffix}", SIZE))


@pytest.mark.parametrize("way", range(10))
def test_each_way_in_both_orders_of_bytes(tmp_path: Path, way: int) -> None:
    arrays = []
    for order in "<>":
        file = tmp_path / f"{order == '<'}.jpg"
        photo().save(file, exif=exif([(274, 3, 1, struct.pack(f"{order}H", way))], order))
        arrays.append(decode(file, SIZE))
    assert np.array_equal(*arrays)
    white = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}
    rows = {"left": (8, 1), "right": (8, 14), "top": (1, 8), "bottom": (14, 8)}
    assert arrays[0][(0, *rows[white.get(way, "left")])] > 200


@pytest.mark.parametrize(
    "entry", [(274, 2, 2, b"6\0"), (274, 5, 1, struct.pack("<II", 6, 0)), (274, 12, 1, bytes(8))]
)
def test_an_orientation_of_no_such_type_turns_nothing(tmp_path: Path, entry: Entry) -> None:
    photo().save(tmp_path / "a.jpg", exif=exif([entry]))
    assert lies(decode(tmp_path / "a.jpg", SIZE))


def test_exif_that_is_cut_short() -> None:
    whole = exif([(271, 2, 4, b"abc\0"), TURN])
    found = [in_exif(whole[:size]) for size in range(len(whole) + 1)]
    assert set(found) == {None, 6}
    assert (found[0], found[10], found[-1]) == (None, None, 6)


def test_random_entries_around_the_orientation(tmp_path: Path) -> None:
    chance = random.Random(0)
    tags = [271, 272, 282, 283, 296, 306, 316, 529, 531, 700, 33432, 33434, 34665, 34853, 36864, 37500, 40965]
    for number in range(300):
        others = [
            (
                tag,
                chance.choice([*range(14), 16, 200]),
                chance.choice([0, 1, 2, 5, 2**16]),
                chance.randbytes(8),
            )
            for tag in chance.sample(tags, chance.randint(1, 6))
        ]
        at = chance.randint(0, len(others))
        photo().save(tmp_path / "a.jpg", exif=exif([*others[:at], TURN, *others[at:]]))
        assert is_turned(decode(tmp_path / "a.jpg", SIZE)), number


def test_one_broken_photo_ends_nothing(tmp_path: Path) -> None:
    for number in range(48):
        photo().save(tmp_path / f"{number:02d}.jpg")
    photo().save(tmp_path / "IMG_0001.jpg", exif=exif(BROKEN["resolution of -1/0"]))
    data = load_unlabeled(tmp_path, SIZE, generator=None)
    assert (len(data), data.skipped) == (49, ())


def test_the_orientation_of_xmp_is_heeded_where_exif_says_none(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    photo().save(tmp_path / "a.jpg", xmp=xmp)
    assert is_turned(decode(tmp_path / "a.jpg", SIZE))


def test_a_tiff_is_turned_once(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.tif", tiffinfo={274: 6})
    assert is_turned(decode(tmp_path / "a.tif", SIZE))
