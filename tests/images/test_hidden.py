"""What Jupyter, git, macOS, Windows and network drives leave among images is neither a class nor an image."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import miniatures
import pytest
import torch
from PIL import Image

from bcu_cli.benchmark import image_links
from bcu_cli.benchmark.cell import DataSet
from bcu_cli.images.decoding.image import Geometry
from bcu_cli.images.folder import list_labelled, load, load_unlabeled
from bcu_cli.images.sources import signs
from bcu_cli.images.sources.hidden import Hidden, is_hidden
from bcu_cli.images.sources.labelled import open_source
from bcu_cli.images.sources.listing import list_images
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("on_screen")

SIZE = Geometry(height=16, width=16)
FOLDERS = (".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN", ".Trash-1000", "lost+found")
FILES = (".DS_Store", "Thumbs.db", "desktop.ini", "._00001.png", ".nfs0000", "Icon\r")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Road signs: 5 of each of 8 classes."""
    signs.write_folder(tmp_path / "signs", 5, seed=1)
    return tmp_path / "signs"


def litter(folder: Path) -> None:
    """Hidden folders with an image in each, and hidden files that are images."""
    for name in FOLDERS:
        (folder / name / "deeper").mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / name / "deeper" / "x.png")
        Image.new("RGB", (16, 16)).save(folder / name / "x-checkpoint.png")
    for name in FILES:
        Image.new("RGB", (16, 16)).save(folder / name, format="PNG")


def littered(folder: Path) -> Path:
    """A copy of a folder with litter at its top and in one class."""
    copy = folder.with_name("littered")
    shutil.copytree(folder, copy)
    litter(copy)
    litter(copy / "stop")
    return copy


LITTER = 2 * len(FOLDERS + FILES)


@pytest.mark.parametrize("name", [*FOLDERS, *FILES, "THUMBS.DB", ".x"])
def test_hidden_names(name: str) -> None:
    assert is_hidden(name)


@pytest.mark.parametrize("name", ["a.png", "git", "_x", "x.", ".", "..", "thumbs", "00_MACOSX", "#1"])
def test_other_names(name: str) -> None:
    assert not is_hidden(name)


def test_a_labelled_folder_has_the_classes_and_images_that_show(small: Path) -> None:
    clean, data = (list_labelled(each).load(SIZE, every_class=True) for each in (small, littered(small)))
    assert data.classes == clean.classes
    assert torch.equal(data.images, clean.images)
    assert torch.equal(data.labels, clean.labels)
    assert (data.skipped, data.found, data.hidden.number) == ((), 40, LITTER)


def test_an_unlabeled_folder_has_the_images_that_show(small: Path) -> None:
    found = [load(list_images(each), SIZE) for each in (small, littered(small))]
    assert torch.equal(found[0].images, found[1].images)
    assert (found[1].skipped, found[1].found, found[1].hidden.number) == ((), 40, LITTER)
    drawn = [
        load_unlabeled(each, SIZE, at_most=33, generator=torch.Generator().manual_seed(0)).images
        for each in (small, small.with_name("littered"))
    ]
    assert torch.equal(*drawn)


def test_a_hidden_folder_that_the_user_names_is_read(small: Path) -> None:
    hidden = small.rename(small.with_name(".cache"))
    assert len(load(list_images(hidden), SIZE)) == 40
    assert len(list_labelled(hidden).load(SIZE).classes) == 8


def test_hidden_folders_beside_train_and_test_do_not_make_them_classes(small: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(small, tmp_path / "divided" / part)
    litter(tmp_path / "divided")
    with open_source(str(tmp_path / "divided")) as source:
        assert source.divided
        assert len(source.train().classes) == 8


@pytest.mark.parametrize("top", ["", "labelled"])
def test_a_zip_of_macos(small: Path, tmp_path: Path, top: str) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(littered(small), pack / top, dirs_exist_ok=True)
    for file in small.rglob("*.png"):
        twin = pack / "__MACOSX" / top / file.parent.name / f"._{file.name}"
        twin.parent.mkdir(parents=True, exist_ok=True)
        twin.write_bytes(b"\0\5\x16\7")
    path = shutil.make_archive(str(tmp_path / "signs"), "zip", pack)
    with open_source(path) as source:
        data = source.train().load(SIZE, every_class=True)
    assert torch.equal(data.images, list_labelled(small).load(SIZE).images)
    assert (len(data.classes), data.skipped) == (8, ())
    assert data.hidden.number == LITTER + bool(top)  # without, it is one of those at the top


def test_a_tar_archive(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "signs.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(littered(small), "./signs")
    data = load(list_images(path), SIZE)
    assert torch.equal(data.images, load(list_images(small), SIZE).images)
    folders, images = 2 * len(FOLDERS), 2  # of the files, ._00001.png alone is called like an image
    assert (data.skipped, data.hidden.number) == ((), folders + images)


def test_a_hidden_tar_archive_is_not_read(small: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with tarfile.open(tmp_path / "images" / ".old.tar", "w") as archive:
        archive.add(small, "signs")
    assert len(list_images(tmp_path / "images")) == 0


def test_members_of_one_hidden_folder_count_once_in_any_order() -> None:
    hidden = Hidden()
    names = ["__MACOSX/._a.png", "a.png", "b/.x.png", "__MACOSX/b/._x.png", "b/../a.png"]
    assert [hidden.holds(Path("z.zip"), PurePosixPath(name)) for name in names] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert hidden.as_json() == {"number": 2, "first": "z.zip/__MACOSX"}


def test_gtsrb_with_what_macos_leaves(tmp_path: Path) -> None:
    miniatures.gtsrb(tmp_path)
    one = next((tmp_path / "gtsrb" / "GTSRB" / "Training" / "00003").glob("*.ppm"))
    one.with_name(f"._{one.name}").write_bytes(b"\0\5\x16\7")
    with open_source(f"gtsrb:{tmp_path}") as source:
        data = source.train().load(SIZE)
    assert (len(data), data.skipped) == (86, ())


def test_a_plan_divides_the_images_that_show(small: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(small, tmp_path / "data" / part)
        litter(tmp_path / "data" / part)
        litter(tmp_path / "data" / part / "stop")
    data = DataSet(
        name="signs",
        folder="data",
        defense_from="test",
        defense_images=8,
        train_images=None,
        test_images=None,
    )
    links = [place for place, _ in image_links._divide(data, tmp_path / "data")]
    assert len(links) == 80
    assert {link.parent.name for link in links} == set(signs.CLASSES)


def evaluate_and_attack(labelled: Path) -> list[object]:
    measured = loading.load_to_measure(str(labelled), SIZE, ())
    train, test = loading.load_to_train(str(labelled), loading.geometry((3, 16, 16)), seed=0)
    return [*measured.classes, len(measured), *train.classes, len(train), len(test)]


def test_commands_say_once_what_they_left_out(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        shutil.copytree(small, tmp_path / "divided" / part)
    litter(tmp_path / "divided")
    path = shutil.make_archive(str(tmp_path / "divided"), "zip", tmp_path / "divided")
    loading.load_to_train(path, loading.geometry((3, 16, 16)), seed=0)
    assert capfd.readouterr().err.count(f"left out: {LITTER // 2}, first {path}/") == 1


@pytest.mark.parametrize("read", [evaluate_and_attack])
def test_what_commands_read_is_what_shows(
    small: Path, capfd: pytest.CaptureFixture[str], read: Callable[[Path], list[object]]
) -> None:
    assert read(littered(small)) == read(small)
    said = capfd.readouterr().err
    assert f"hidden in {small.with_name('littered')}, and left out: {LITTER}, first" in said
    assert f"hidden in {small}," not in said
