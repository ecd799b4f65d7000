from __future__ import annotations

import shutil
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding.image import MOST_BYTES, Geometry, Member, UnreadableError, decode
from bcu_cli.images.folder import divide, find_unlabeled, hold_out, load, load_unlabeled
from bcu_cli.images.sources.listing import list_files, list_images

if TYPE_CHECKING:
    from pathlib import Path

SIZE = Geometry(height=16, width=16)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pack(path: Path, folder: Path) -> Path:
    """A shard of the files of a folder, each with a label beside it."""
    with tarfile.open(path, "w") as shard:
        for file in sorted(folder.iterdir()):
            shard.add(file, f"./{file.name}")
            label = tarfile.TarInfo(f"./{file.stem}.cls")
            shard.addfile(label)
    return path


def test_the_files_of_a_folder_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/c/1.png", "b/10.png", "a.png", "c.png", "ü/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listing = list_images(tmp_path)
    assert listing[:] == list_files(tmp_path)[0]
    below = [str(file.relative_to(tmp_path)) for file in listing]
    assert below == ["a.png", "b/10.png", "b/2.png", "b/c/1.png", "c.png", "ü/x.png"]
    assert listing.picked(np.array([4, 0]))[:] == [listing[4], listing[0]]
    assert listing.picked(np.array([4, 0])).found == 6


def test_a_shard_holds_what_its_files_held(photos: Path, tmp_path: Path) -> None:
    shard = pack(tmp_path / "a.tar", photos)
    packed = load_unlabeled(shard, SIZE, generator=chance())
    assert torch.equal(packed.images, load_unlabeled(photos, SIZE, generator=chance()).images)
    assert (packed.found, packed.skipped) == (320, ())
    beside = tmp_path / "both"
    beside.mkdir()
    shutil.copy(shard, beside / "b.TAR")
    Image.new("RGB", (16, 16), "red").save(beside / "a.png")
    Image.new("RGB", (16, 16), "blue").save(beside / "c.png")
    both = load_unlabeled(beside, SIZE, generator=chance())
    assert torch.equal(both.images[1:-1], packed.images)
    assert both.images[[0, -1], :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_a_damaged_shard_in_a_folder_is_named_and_what_is_whole_is_used(photos: Path, tmp_path: Path) -> None:
    content = pack(tmp_path / "a.tar", photos).read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: len(content) // 2])
    (tmp_path / "b.tar").write_bytes(b"no archive" * 100)
    data = load_unlabeled(tmp_path, SIZE, generator=chance())
    assert 100 < len(data) == data.found < 320
    assert [(path.name, reason[:22]) for path, reason in data.skipped] == [
        ("a.tar", "it is cut short: ./" + data.skipped[0][1][19:22]),
        ("b.tar", "it is no tar archive t"),
    ]


def test_a_file_that_is_no_archive_is_refused(photos: Path) -> None:
    with pytest.raises(ImagesError, match=r"is a file, and no tar archive with images: it is no tar"):
        list_images(next(photos.iterdir()))
    with pytest.raises(ImagesError, match="does not exist"):
        list_images(photos / "nothing")


def test_a_member_that_no_picture_is_as_large_as_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # a hole, which takes no room
    member = Member(path=tmp_path / "a.tar", offset=0, size=MOST_BYTES + 1, name="a.png")
    with pytest.raises(UnreadableError, match="bytes are no image"):
        decode(member, SIZE)


def test_a_picture_takes_little_more_than_its_name(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:07d}.png").touch()
    listing = list_images(tmp_path)
    numbers = (listing.place, listing.ends, listing.offsets, listing.sizes, listing.chosen)
    assert len(listing.names) + sum(column.nbytes for column in numbers) == 100 * (11 + 5 * 8)


def test_the_fingerprint_is_of_the_names_wherever_the_folder_lies(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "x")
    before = list_images(tmp_path / "x")
    assert before.sha256() == list_images(photos).sha256()
    assert before.sha256() != before.picked(np.arange(5)).sha256()
    before[0].rename(before[0].with_name("0.png"))
    assert before.sha256() != list_images(tmp_path / "x").sha256()


@pytest.mark.parametrize("at_most", [None, 100])
def test_names_are_divided_as_the_pictures_would_be(photos: Path, at_most: int | None) -> None:
    first, again = chance(3), chance(3)
    listing = find_unlabeled(photos, at_most=at_most, generator=first)
    rest, apart = divide(listing, 0.1, most=20, generator=first)
    data = load_unlabeled(photos, SIZE, at_most=at_most, generator=again)
    everything = data.images.clone()
    used, held_out = hold_out(data, 0.1, most=20, generator=again, in_place=True)
    assert torch.equal(load(rest, SIZE).images, used.images)
    assert torch.equal(load(apart, SIZE).images, held_out.images)
    assert len(used) + len(held_out) == len(everything)
    assert used.images.data_ptr() == data.images.data_ptr()  # no second copy
