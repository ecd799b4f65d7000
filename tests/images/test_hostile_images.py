"""Images that hang, crash or bloat their decoder, and 600 that are damaged at random."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from deadly import Deadly
from PIL import Image

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding import processes
from bcu_cli.images.decoding.image import Geometry, UnreadableError, decode
from bcu_cli.images.decoding.processes import decode_many

if TYPE_CHECKING:
    from pathlib import Path

SIZE = Geometry(height=8, width=8)
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


def greys(folder: Path, number: int) -> list[Path]:
    """So many images, each grey as its number."""
    files = [folder / f"{grey:03d}.png" for grey in range(number)]
    for grey, file in enumerate(files):
        Image.new("L", (8, 8), grey).save(file)
    return files


@pytest.mark.parametrize("several", [False, True])
def test_what_breaks_its_decoder_is_skipped_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], several: bool
) -> None:
    monkeypatch.setattr(processes, "FILES_WORTH_PROCESSES", 1 if several else 10_000)
    monkeypatch.setattr(processes, "MOST_SECONDS", 1.0)
    files = greys(tmp_path, 150)
    bad = {3: "crash.png", 4: "exit.png", 70: "hang.png", 100: "memory.png", 149: "crash.png"}
    for position, name in (bad | {120: "noise.png"}).items():
        files[position] = Deadly(files[position].rename(tmp_path / name))
    started = time.monotonic()
    pictures, kept, skipped = decode_many(files, SIZE)
    assert time.monotonic() - started < 30
    assert kept == [i for i in range(150) if i not in bad]
    assert pictures[:, 0, 0, 0].tolist() == kept
    assert dict(skipped) == {
        3: "it broke its decoder (SIGSEGV)",
        4: "it broke its decoder (exit code 3)",
        70: "it took more than 1 seconds to decode",
        100: "it takes more memory to decode than an image should",
        149: "it broke its decoder (SIGSEGV)",
    }
    assert capfd.readouterr() == ("", "")


def test_a_set_that_breaks_one_process_after_another_is_refused(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "crash.png")
    with pytest.raises(ImagesError, match=r"16 processes that decoded the images died; .*SIGSEGV"):
        decode_many([Deadly(tmp_path / "crash.png")] * 40, SIZE)


@pytest.mark.parametrize("size", [(1, 3_000_000), (3_000_000, 1), (8, 808)])
def test_what_is_far_longer_than_wide_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "a.png")
    with pytest.raises(UnreadableError, match="pixels are no shape of a photo"):
        decode(tmp_path / "a.png", Geometry(height=224, width=224))
    Image.new("1", (8, 800)).save(tmp_path / "b.png")
    assert decode(tmp_path / "b.png", SIZE).shape == (3, 8, 8)


def test_what_would_grow_beyond_all_measure_is_refused(tmp_path: Path) -> None:
    Image.new("1", (8, 800)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableError, match="pixels to cut the centre out of it"):
        decode(tmp_path / "a.png", Geometry(height=1024, width=1024))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(entries: dict[int, tuple[int, int, int]], more: bytes = b"") -> bytes:
    """A TIFF of one directory: tag -> (type, count, value)."""
    fields = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + b"\x08\0\0\0" + more


BASE = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
BOMBS = {
    "tile of a gigapixel": tiff(
        BASE
        | {259: (3, 1, 8), 322: (4, 1, 2**15), 323: (4, 1, 2**15), 324: (4, 1, 8), 325: (4, 1, 2**31 - 1)}
    ),
    "strip of 4 GB": tiff(
        BASE | {259: (3, 1, 5), 273: (4, 1, 8), 278: (4, 1, 2**31), 279: (4, 1, 2**32 - 1)}
    ),
    "a million strips": tiff(BASE | {259: (3, 1, 1), 273: (4, 2**28, 8), 279: (4, 2**28, 8)}),
    "4 billion samples": tiff(BASE | {277: (4, 1, 2**32 - 1), 273: (4, 1, 8), 279: (4, 1, 64)}),
    "65535 bits a sample": tiff(BASE | {258: (3, 1, 65535), 273: (4, 1, 8), 279: (4, 1, 64)}),
    "PNG of a terapixel": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(bytes(1000)))
    + chunk(b"IEND", b""),
    "PNG with a text of 100 MB": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
    + chunk(b"IDAT", zlib.compress(bytes(72)))
    + chunk(b"IEND", b""),
}


def test_bombs_are_skipped_with_a_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = greys(tmp_path, 1)
    for number, content in enumerate(BOMBS.values()):
        files.append(tmp_path / f"bomb{number}")
        files[-1].write_bytes(content)
    started = time.monotonic()
    _, kept, skipped = decode_many(files, Geometry(height=224, width=224))
    assert time.monotonic() - started < 30
    assert kept == [0]
    assert [position for position, _ in skipped] == list(range(1, len(files)))
    assert all(reason for _, reason in skipped)
    assert capfd.readouterr() == ("", "")


def damaged(chance: random.Random) -> bytes:
    """An image with some of its bytes changed, cut out or put in twice; mostly near its head."""
    picture = Image.fromarray(np.frombuffer(chance.randbytes(24 * 20 * 3), np.uint8).reshape(20, 24, 3))
    out = io.BytesIO()
    kind = chance.choice(FORMATS)
    more = {"compression": chance.choice(["raw", "tiff_lzw", "jpeg", "packbits"])} if kind == "TIFF" else {}
    picture.save(out, kind, **more)
    content = bytearray(out.getvalue())
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(min(len(content), chance.choice([64, 256, 10_000])))
        match chance.randrange(4):
            case 0:
                content[at] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
            case 1:
                content[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
            case 2:
                del content[at : at + chance.randint(1, 16)]
            case _:
                content[at:at] = content[at : at + chance.randint(1, 64)]
        content = content or bytearray(b"\0")
    return bytes(content)


def test_a_damaged_image_is_decoded_or_skipped_with_a_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(0)
    files = [tmp_path / f"{number:03d}" for number in range(600)]
    for file in files:
        file.write_bytes(damaged(chance))
    pictures, kept, skipped = decode_many(files, SIZE)
    assert len(pictures) == len(kept)
    assert sorted(kept + [position for position, _ in skipped]) == list(range(600))
    assert 100 < len(kept) < 500
    assert all(reason for _, reason in skipped)
    assert capfd.readouterr() == ("", "")
