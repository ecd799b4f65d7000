"""Images whose values are not of 8 bits: what becomes of them, and what is said of it."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from bcu_cli.images.decoding import scaling
from bcu_cli.images.decoding.image import Geometry, decode
from bcu_cli.images.decoding.scaling import MISSING, STRETCHED, range_note
from bcu_cli.images.decoding.unreadable import UnreadableError
from bcu_cli.images.folder import load, load_unlabeled
from bcu_cli.images.sources.listing import list_images
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("on_screen")

SIZE = Geometry(height=16, width=16)
RAMP = np.linspace(0, 255, 256).reshape(16, 16)  # the 8-bit image that all of these show
SHOWN = RAMP.astype(np.uint8)


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    """The grey values of an image, and what was said."""
    notes: list[str] = []
    return decode(path, SIZE, on_note=notes.append)[0], notes


def tiff(path: Path, values: np.ndarray, **tags: Any) -> Path:
    """A TIFF of one channel, uncompressed, of any type of number; written by hand as Pillow cannot."""
    values = np.ascontiguousarray(values)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    text = tags.get("no_data", b"")
    entries = {
        256: (4, 1, values.shape[1]),
        257: (4, 1, values.shape[0]),
        258: (3, 1, values.dtype.itemsize * 8),
        259: (3, 1, 1),
        262: (3, 1, tags.get("photometric", 1)),
        273: (4, 1, 512),
        277: (3, 1, 1),
        278: (4, 1, values.shape[0]),
        279: (4, 1, values.nbytes),
        339: (3, 1, kind),
    }
    if text:
        entries[42113] = (2, len(text), 400)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    head += b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items())) + bytes(4)
    path.write_bytes(head.ljust(400, b"\0") + text.ljust(112, b"\0") + values.tobytes())
    return path


def with_hole(value: float, scale: float = 1.0) -> np.ndarray:
    values = (RAMP * scale).astype(np.float32)
    values[0, 0] = value
    return values


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        (with_hole(np.nan, 1 / 255), [MISSING, range_note(1)]),
        (with_hole(-np.inf), [MISSING, range_note(255)]),
        (with_hole(-3.4028235e38, 40.0), [MISSING, STRETCHED]),
        ((RAMP / 255).astype(np.float32), [range_note(1)]),
        (RAMP.astype(np.float32), [range_note(255)]),
        ((RAMP / 127.5 - 1).astype(np.float32), [STRETCHED]),
        ((RAMP * 1e30).astype(np.float32), [STRETCHED]),
        (RAMP.astype(np.uint32), [range_note(255)]),
        ((RAMP * 257).astype(np.uint32), [range_note(65535)]),
        ((RAMP * 2**22).astype(np.uint32), [STRETCHED]),
        ((RAMP * 2**24).astype(np.uint32), [STRETCHED]),  # beyond what 32 bits with a sign hold
        ((RAMP * 2**23 - 2**30).astype(np.int32), [STRETCHED]),
        ((RAMP * 257).astype(np.uint16), [range_note(65535)]),
        (RAMP.astype(np.uint16), [range_note(255)]),
        ((RAMP * 4095 / 255).round().astype(np.uint16), [range_note(4095)]),
        ((RAMP * 256 - 2**15).astype(np.int16), [STRETCHED]),
    ],
)
def test_a_tiff_shows_what_it_shows_in_8_bits(tmp_path: Path, values: np.ndarray, notes: list[str]) -> None:
    grey, said = read(tiff(tmp_path / "a.tif", values))
    assert np.abs(grey.astype(int) - SHOWN).max() <= 1
    assert said == notes


def test_infinity_is_the_largest_value(tmp_path: Path) -> None:
    values = with_hole(np.inf, 1 / 255)
    grey, said = read(tiff(tmp_path / "a.tif", values))
    assert grey[0, 0] == 255
    assert np.array_equal(grey.ravel()[1:], SHOWN.ravel()[1:])
    assert said == [MISSING, range_note(1)]


def test_what_a_map_marks_as_missing_is_no_value(tmp_path: Path) -> None:
    grey, said = read(tiff(tmp_path / "a.tif", with_hole(-9999, 20.0), no_data=b"-9999\0"))
    assert np.abs(grey.astype(int) - SHOWN).max() <= 1
    assert said == [MISSING, STRETCHED]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_without_a_value_is_skipped(tmp_path: Path, value: float) -> None:
    with pytest.raises(UnreadableError, match="no value that is a finite number"):
        read(tiff(tmp_path / "a.tif", np.full((16, 16), value, dtype=np.float32)))


def test_16_bits_of_which_zero_is_white(tmp_path: Path) -> None:
    grey, _ = read(tiff(tmp_path / "a.tif", (RAMP * 257).astype(np.uint16), photometric=0))
    assert np.array_equal(grey, 255 - SHOWN)


def test_a_png_of_12_bits_in_16(tmp_path: Path) -> None:
    Image.fromarray((RAMP * 4095 / 255).round().astype(np.uint16)).save(tmp_path / "a.png")
    grey, said = read(tmp_path / "a.png")
    assert np.abs(grey.astype(int) - SHOWN).max() <= 1
    assert said == [range_note(4095)]


def deep_png(path: Path, values: np.ndarray) -> Path:
    """A PNG of 16 bits in each of three channels, which Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def test_colours_of_16_bits(tmp_path: Path) -> None:
    assert np.array_equal(read(deep_png(tmp_path / "a.png", RAMP * 257))[0], SHOWN)
    for scale in (1, 16):  # of 8 and of 12 bits: Pillow would show black
        with pytest.raises(UnreadableError, match="its 16-bit colours are all below 4,096"):
            read(deep_png(tmp_path / "b.png", RAMP * scale))


def test_8_bits_are_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(SHOWN // 20).save(tmp_path / "dark.tif")
    grey, said = read(tmp_path / "dark.tif")
    assert (grey.max(), said) == (12, [])


def test_each_way_is_noted_once_with_its_first_image(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(200):
        values = (RAMP * 257).astype(np.uint16) if number < 100 else (RAMP / 255).astype(np.float32)
        tiff(tmp_path / f"{number:03d}.tif", values)
    data = loading.with_bar(lambda bar: load(list_images(tmp_path), SIZE, on_progress=bar), tmp_path)
    assert data.scaled == (
        (tmp_path / "000.tif", range_note(65535)),
        (tmp_path / "100.tif", range_note(1)),
    )
    said = capfd.readouterr()
    assert said.err.count("values of 0 to") == 2
    assert said.out == ""


def test_the_noise_of_libtiff_stays_off_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(40):
        Image.fromarray(SHOWN).save(tmp_path / f"{number:02d}.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "07.tif").read_bytes())
    content[20:60] = bytes(40)
    (tmp_path / "07.tif").write_bytes(content[:-50])
    data = load_unlabeled(tmp_path, SIZE, generator=None)
    assert [path.name for path, _ in data.skipped] == ["07.tif"]
    assert all(reason for _, reason in data.skipped)
    assert capfd.readouterr() == ("", "")


def test_any_exception_of_a_decoder_is_the_reason_of_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(SHOWN).save(tmp_path / "a.png")
    for error in (KeyError("x"), AssertionError(), RecursionError("deep"), ZeroDivisionError("z")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(scaling.Image.Image, "convert", fail)
        with pytest.raises(UnreadableError, match=type(error).__name__):
            decode(tmp_path / "a.png", SIZE)
