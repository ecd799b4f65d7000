from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from bcu_cli.errors import OutputError
from bcu_cli.report.trigger_sheet import GAP, MARGIN, data_uri, sheet, write_image, write_sheet
from bcu_cli.triggers.custom import Custom

if TYPE_CHECKING:
    from pathlib import Path


def white_corner(side: int, channels: int = 3) -> Custom:
    """Makes the upper left pixel white."""
    mask = torch.zeros(1, side, side)
    mask[0, 0, 0] = 1
    return Custom(picture=torch.ones(channels, side, side), mask=mask)


def pixel(drawn: Image.Image, row: int, column: int, x: int, y: int, side: int = 64) -> tuple[int, ...]:
    """The colour at (x, y) of the image in that place."""
    return drawn.getpixel((MARGIN + column * (side + GAP) + x, GAP + row * (side + GAP) + y))


def test_rows_are_clean_triggered_and_ten_times_the_difference() -> None:
    images = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (250, 100)])
    drawn = sheet(white_corner(4), images)
    assert drawn.size == (MARGIN + 2 * (64 + GAP), GAP + 3 * (64 + GAP))
    for x, y, triggered, strong, clipped in (
        (0, 0, 255, 50, 255),
        (15, 15, 255, 50, 255),
        (16, 0, None, 0, 0),
    ):
        for column, value in enumerate((250, 100)):  # 4 pixels become 64: a pixel is a square of 16
            assert pixel(drawn, 0, column, x, y) == (value,) * 3
            assert pixel(drawn, 1, column, x, y) == (triggered or value,) * 3
            assert pixel(drawn, 2, column, x, y) == ((strong, clipped)[column],) * 3


def test_a_colour_stays_a_colour_and_grey_becomes_one() -> None:
    red = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    red[:, 0] = 200
    assert pixel(sheet(white_corner(64), red), 0, 0, 5, 5) == (200, 0, 0)
    grey = torch.full((1, 1, 64, 64), 90, dtype=torch.uint8)
    assert pixel(sheet(white_corner(64, channels=1), grey), 0, 0, 5, 5) == (90, 90, 90)


@pytest.mark.parametrize(("side", "drawn_side"), [(28, 84), (32, 64), (63, 126), (64, 64), (100, 100)])
def test_small_images_are_enlarged_by_a_whole_number(side: int, drawn_side: int) -> None:
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    assert sheet(white_corner(side), images).size[0] == MARGIN + drawn_side + GAP


def embedded(pixels: torch.Tensor) -> tuple[int, torch.Tensor]:
    """The length of an image as a page holds it, and its values uint8 ``[C, H, W]``."""
    data = base64.b64decode(data_uri(pixels).partition(",")[2])
    values = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    return len(data), torch.from_numpy(values).permute(2, 0, 1)


def test_a_page_holds_small_images_exactly_and_large_ones_nearly_in_a_fraction_of_the_bytes(
    tmp_path: Path,
) -> None:
    noise = torch.Generator().manual_seed(0)
    small = torch.rand(3, 64, 64, generator=noise).mul(255).round() / 255
    _, values = embedded(small)
    assert torch.equal(values, (small * 255).to(torch.uint8))
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12, generator=noise), 224, mode="bicubic")
    photo = (smooth[0] + torch.randn(3, 224, 224, generator=noise) / 50).clamp(0, 1)
    photo[:, 100:108, 100:108] = torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1)  # a trigger stays what it is
    length, values = embedded(photo)
    lossless = tmp_path / "lossless.png"
    write_image(photo, lossless)
    assert length < lossless.stat().st_size / 2
    trigger = values[:, 101:107, 101:107].float() / 255
    assert (trigger - torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1)).abs().max() < 0.1


def test_eight_images_spread_over_the_set_are_written(tmp_path: Path) -> None:
    images = torch.arange(80, dtype=torch.uint8).view(-1, 1, 1, 1).expand(80, 3, 64, 64)
    path = tmp_path / "sheet.png"
    assert len(write_sheet(white_corner(64), images, path)) == 64
    with Image.open(path) as drawn:
        assert drawn.format == "PNG"
        shown = [pixel(drawn, 0, column, 5, 5)[0] for column in range(8)]
        assert drawn.size[0] == MARGIN + 8 * (64 + GAP)
    assert shown == [0, 10, 20, 30, 40, 50, 60, 70]
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]


def test_fewer_images_than_columns(tmp_path: Path) -> None:
    write_sheet(white_corner(64), torch.zeros(3, 3, 64, 64, dtype=torch.uint8), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as drawn:
        assert drawn.size[0] == MARGIN + 3 * (64 + GAP)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_sheet(white_corner(64), torch.zeros(3, 3, 64, 64, dtype=torch.uint8), tmp_path / "no" / "s.png")
