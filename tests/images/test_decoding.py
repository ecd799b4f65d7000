from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from bcu_cli.images.decoding import processes
from bcu_cli.images.decoding.image import Geometry, UnreadableError, decode
from bcu_cli.images.decoding.processes import decode_many

if TYPE_CHECKING:
    from pathlib import Path

SIZE = Geometry(height=8, width=8)


def halves(mode: str, left: object, right: object, size: tuple[int, int] = (16, 16)) -> Image.Image:
    picture = Image.new(mode, size, left)
    picture.paste(right, (size[0] // 2, 0, size[0], size[1]))
    return picture


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.gif", "a.tiff", "a.ppm", "no-extension"]
)
def test_every_format_by_content(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    format_ = None if "." in name else "PNG"
    halves("RGB", (250, 0, 0), (0, 0, 250)).save(file, format=format_)
    array = decode(file, SIZE)
    assert array.shape == (3, 8, 8)
    assert array.dtype == np.uint8
    assert array[0, 4, 1] > 200 > 60 > array[0, 4, 6]
    assert array[2, 4, 6] > 200 > 60 > array[2, 4, 1]


@pytest.mark.parametrize(
    ("mode", "left", "right"),
    [
        ("L", 0, 255),
        ("1", 0, 1),
        ("LA", (0, 255), (255, 255)),
        ("I;16", 0, 65535),
        ("F", 0.0, 1.0),
        ("I", 0, 65535),
    ],
)
def test_grey_of_every_depth(tmp_path: Path, mode: str, left: object, right: object) -> None:
    file = tmp_path / ("a.tiff" if mode in "FI" else "a.png")
    halves(mode, left, right).save(file)
    array = decode(file, SIZE)
    assert array[:, 4, 0].tolist() == [0, 0, 0]
    assert array[:, 4, 7].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0x8080, dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.unique(decode(tmp_path / "a.png", SIZE)).tolist() == [0x80]


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    halves("RGBA", (255, 0, 0, 255), (255, 0, 0, 0)).save(tmp_path / "a.png")
    array = decode(tmp_path / "a.png", SIZE)
    assert array[:, 4, 0].tolist() == [255, 0, 0]
    assert array[:, 4, 7].tolist() == [255, 255, 255]


def test_palette_and_cmyk(tmp_path: Path) -> None:
    halves("RGB", (255, 0, 0), (0, 0, 255)).convert("P").save(tmp_path / "p.png")
    assert decode(tmp_path / "p.png", SIZE)[0, 4, 0] > 200
    halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)).save(tmp_path / "c.jpg")
    assert decode(tmp_path / "c.jpg", SIZE)[0, 4, 0] > 200


def test_exif_rotation_is_honoured(tmp_path: Path) -> None:
    picture = halves("RGB", (255, 255, 255), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: left becomes top
    picture.save(tmp_path / "a.jpg", exif=exif)
    array = decode(tmp_path / "a.jpg", SIZE)
    assert array[0, 0, 4] > 200 > 60 > array[0, 7, 4]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "a.gif", SIZE).min() == 255


def test_the_shorter_side_is_resized_and_the_centre_cut_out(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 8))
    picture.paste((255, 255, 255), (16, 0, 24, 8))
    picture.save(tmp_path / "wide.png")
    assert decode(tmp_path / "wide.png", SIZE).min() == 255
    Image.new("RGB", (3, 1), "white").save(tmp_path / "tiny.png")
    assert decode(tmp_path / "tiny.png", SIZE).shape == (3, 8, 8)
    cropped = decode(tmp_path / "wide.png", Geometry(height=8, width=8, crop_pct=0.5))
    assert cropped.min() == 255


def test_one_channel(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", Geometry(channels=1, height=8, width=8)).shape == (1, 8, 8)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"%PDF-1.4", b"GIF89a"])
def test_no_picture(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(content)
    with pytest.raises(UnreadableError):
        decode(file, SIZE)


def test_a_cut_picture_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UnreadableError):
        decode(file, SIZE)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableError):
        decode(tmp_path / "a.png", SIZE)


def test_eps_and_other_formats_of_pillow_are_not_tried(tmp_path: Path) -> None:
    for name in ("a.eps", "a.tga", "a.pcx"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        with pytest.raises(UnreadableError):
            decode(tmp_path / name, SIZE)


@pytest.mark.parametrize(
    "size",
    [Geometry(height=8, width=8), Geometry(height=32, width=32), Geometry(channels=1, height=40, width=20)],
)
def test_pixels_become_what_a_file_of_them_becomes(tmp_path: Path, size: Geometry) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(decode(pixels, size), decode(tmp_path / "a.png", size))
    if size.height == 32:
        assert np.array_equal(decode(pixels, size), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("several", [False, True])
def test_many_keep_their_order_and_name_what_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    monkeypatch.setattr(processes, "FILES_WORTH_PROCESSES", 1 if several else 10_000)
    files = []
    for grey in range(150):
        file = tmp_path / f"{grey:03d}.png"
        Image.new("L", (8, 8), grey).save(file)
        files.append(file)
    files[70].write_text("no image")
    pictures, kept, skipped = decode_many(files, SIZE)
    assert kept == [i for i in range(150) if i != 70]
    assert pictures[:, 0, 0, 0].tolist() == kept
    assert [position for position, _ in skipped] == [70]
