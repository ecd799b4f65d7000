from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding.image import Geometry
from bcu_cli.images.folder import hold_out, list_labelled, load, load_unlabeled
from bcu_cli.images.sources import signs
from bcu_cli.images.sources.listing import list_files, list_images

if TYPE_CHECKING:
    from pathlib import Path

SIZE = Geometry(height=16, width=16)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_any_depth_of_subfolders_and_links_without_loops(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.png").touch()
    (tmp_path / "y.png").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    files, faults = list_files(tmp_path)
    assert [file.name for file in files] == ["x.png", "y.png"]
    assert faults == ((tmp_path / "a" / "loop", "it is a link to a folder that is listed already"),)


def test_folders_deeper_than_python_goes(tmp_path: Path) -> None:
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(os.open("x.png", os.O_CREAT, dir_fd=place))
    os.close(place)
    files, faults = list_files(tmp_path)
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # as deep as shutil cannot go
    assert ([file.name for file in files], faults) == (["x.png"], ())


def test_links_to_themselves_are_skipped_and_counted(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled / "test" / "stop", tmp_path / "stop")
    (tmp_path / "stop" / "itself.png").symlink_to("itself.png")
    (tmp_path / "there").symlink_to("back")
    (tmp_path / "back").symlink_to("there")
    for data in (load(list_images(tmp_path), SIZE), list_labelled(tmp_path).load(SIZE)):
        assert len(data) == 25
        assert sorted(path.name for path, _ in data.skipped) == ["back", "itself.png", "there"]
        assert {reason for _, reason in data.skipped} == {"Too many levels of symbolic links"}


def test_labels_are_the_subfolders_in_alphabetical_order(labelled: Path) -> None:
    data = list_labelled(labelled / "test").load(SIZE)
    assert data.classes == tuple(sorted(signs.CLASSES))
    assert torch.bincount(data.labels).tolist() == [25] * 8


def test_labels_are_the_models_classes_where_it_names_them(labelled: Path) -> None:
    names = tuple(sorted(signs.CLASSES, reverse=True))
    data = list_labelled(labelled / "test").load(SIZE, classes=names)
    assert data.classes == names
    assert data.labels[0] == 7  # the first file is of the first subfolder, the last class


def test_a_folder_need_not_hold_all_classes(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled / "test" / "stop", tmp_path / "stop")
    data = list_labelled(tmp_path).load(SIZE, classes=tuple(sorted(signs.CLASSES)))
    assert data.labels.unique().tolist() == [sorted(signs.CLASSES).index("stop")]


def test_a_class_that_the_model_does_not_have(labelled: Path) -> None:
    with pytest.raises(ImagesError, match="has a class danger, which is none of the model's classes"):
        list_labelled(labelled / "test").load(SIZE, classes=("ahead-only", "stop"))


def test_an_empty_class(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled / "test", tmp_path / "x")
    (tmp_path / "x" / "zebra").mkdir()
    assert len(list_labelled(tmp_path / "x").load(SIZE).classes) == 9
    with pytest.raises(ImagesError, match="class zebra"):
        list_labelled(tmp_path / "x").load(SIZE, every_class=True)


def test_one_class_is_enough_to_measure_on_but_not_to_train_on(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled / "test" / "stop", tmp_path / "stop")
    assert list_labelled(tmp_path).load(SIZE).classes == ("stop",)
    with pytest.raises(ImagesError, match="has one class alone, stop"):
        list_labelled(tmp_path).load(SIZE, every_class=True)


def test_no_class_subfolders(photos: Path) -> None:
    with pytest.raises(ImagesError, match="no class subfolders"):
        list_labelled(photos).load(SIZE)


def test_too_few_pictures_says_how_many_are_needed(tmp_path: Path) -> None:
    signs.write_folder(tmp_path, 3, seed=0, labelled=False)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ImagesError, match=r"holds 24 readable images; at least 32 are needed \(1 file is no"):
        load_unlabeled(tmp_path, SIZE, generator=chance())


def test_drawing_is_decided_by_the_seed(photos: Path) -> None:
    first = load_unlabeled(photos, SIZE, at_most=40, generator=chance(1))
    again = load_unlabeled(photos, SIZE, at_most=40, generator=chance(1))
    other = load_unlabeled(photos, SIZE, at_most=40, generator=chance(2))
    assert (len(first), first.found) == (40, 320)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_held_out_pictures_are_not_used(photos: Path) -> None:
    data = load_unlabeled(photos, SIZE, generator=chance())
    used, held_out = hold_out(data, 0.1, most=1000, generator=chance())
    assert (len(used), len(held_out)) == (288, 32)
    everything = {image.numpy().tobytes() for image in data.images}
    parts = [{image.numpy().tobytes() for image in part.images} for part in (used, held_out)]
    assert parts[0] | parts[1] == everything
    assert not parts[0] & parts[1]


def test_imagenets_folders_are_in_the_order_of_the_models_names(tmp_path: Path) -> None:
    numbers = [f"n{number:08d}" for number in range(1000)]
    for number in numbers:
        (tmp_path / number).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / numbers[7] / "a.png")
    names = tuple(f"name {999 - i}" for i in range(1000))
    part = list_labelled(tmp_path)
    data = part.load(Geometry(height=8, width=8), classes=names)
    assert data.labels is not None
    assert (data.labels.tolist(), data.classes) == ([7], names)
    with pytest.raises(ImagesError, match="has a class n00000000, which is none of"):
        part.load(Geometry(height=8, width=8), classes=names[:999])
