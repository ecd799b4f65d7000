from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import miniatures
import pytest
import torch

from bcu_cli.errors import ImagesError, UsageError
from bcu_cli.images.decoding.image import Geometry
from bcu_cli.images.folder import ImageSet, list_labelled
from bcu_cli.images.sources import signs
from bcu_cli.images.sources.labelled import open_source

SIZE = Geometry(height=16, width=16)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Road signs in train/ and test/: 3 and 2 of each of 8 classes."""
    root = tmp_path_factory.mktemp("signs")
    signs.write_folder(root / "train", 3, seed=1)
    signs.write_folder(root / "test", 2, seed=2)
    return root


def read(spec: object, **options: bool) -> tuple[bool, ImageSet, ImageSet]:
    """Whether a source is divided, and its parts."""
    with open_source(str(spec), **options) as source:
        return source.divided, source.train().load(SIZE), source.test().load(SIZE)


def same(one: ImageSet, other: ImageSet) -> bool:
    assert one.classes == other.classes
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_a_folder_of_classes_is_the_whole(small: Path) -> None:
    divided, train, test = read(small / "test")
    assert not divided
    assert same(train, test)
    assert len(train) == 16


@pytest.mark.parametrize(
    ("names", "tested"), [(["test"], "test"), (["val"], "val"), (["test", "val"], "test")]
)
def test_a_folder_of_train_and_test_or_val_is_divided(
    small: Path, tmp_path: Path, names: list[str], tested: str
) -> None:
    shutil.copytree(small / "train", tmp_path / "train")
    for name in names:
        signs.write_folder(tmp_path / name, 1, seed=len(name))
    divided, train, test = read(tmp_path)
    assert divided
    assert same(train, list_labelled(small / "train").load(SIZE))
    assert same(test, list_labelled(tmp_path / tested).load(SIZE))
    assert test.root == tmp_path / tested


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("training", "validation"), ("train", "valid")]
)
def test_parts_may_have_other_names(small: Path, tmp_path: Path, train: str, test: str) -> None:
    shutil.copytree(small / "train", tmp_path / train)
    shutil.copytree(small / "test", tmp_path / test)
    divided, learnt, measured = read(tmp_path)
    assert divided
    assert (len(learnt), len(measured)) == (24, 16)


@pytest.mark.parametrize(
    ("parts", "beside", "said"),
    [
        (("train", "test"), "Meta", "train and Meta, which is neither"),
        (("train",), None, "has train, and no other part"),
        (("test", "val"), None, "has test, and no other part"),
    ],
)
def test_parts_without_the_other_one_or_with_something_beside_them_are_no_classes(
    small: Path, tmp_path: Path, parts: tuple[str, ...], beside: str | None, said: str
) -> None:
    for part in parts:
        shutil.copytree(small / "test", tmp_path / part)
    if beside:
        shutil.copytree(small / "test" / "stop", tmp_path / beside)
    with pytest.raises(ImagesError, match=said):
        read(tmp_path)


def test_a_part_without_classes_is_passed_over(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "train", tmp_path / "train")
    shutil.copytree(small / "test", tmp_path / "val")
    shutil.copytree(small / "test" / "stop", tmp_path / "test")
    divided, _, measured = read(tmp_path)
    assert divided
    assert len(measured) == 16


@pytest.mark.parametrize("more", ["truck", None])
def test_classes_that_happen_to_have_such_a_name_are_classes(
    small: Path, tmp_path: Path, more: str | None
) -> None:
    for name in ["train", more] if more else ["test", "val"]:
        shutil.copytree(small / "test" / "stop", tmp_path / name)
    divided, train, _ = read(tmp_path)
    assert not divided
    assert len(train.classes) == 2


@pytest.mark.parametrize("top", ["", "signs", "train"])
def test_a_zip_file_is_what_was_packed(small: Path, tmp_path: Path, top: str) -> None:
    shutil.copytree(small, tmp_path / "pack" / top, dirs_exist_ok=True)
    path = Path(shutil.make_archive(str(tmp_path / "signs"), "zip", tmp_path / "pack"))
    divided, train, test = read(path)
    assert divided
    assert same(train, list_labelled(small / "train").load(SIZE))
    assert same(test, list_labelled(small / "test").load(SIZE))
    assert test.root == path / top / "test"


def test_messages_about_a_zip_file_name_it_and_its_members(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "test", tmp_path / "pack" / "signs")
    (tmp_path / "pack" / "signs" / "stop" / "notes.txt").write_text("no image")
    path = Path(shutil.make_archive(str(tmp_path / "signs"), "zip", tmp_path / "pack"))
    _, data, _ = read(path)
    assert [file for file, _ in data.skipped] == [path / "signs" / "stop" / "notes.txt"]
    with open_source(str(path)) as source, pytest.raises(ImagesError) as raised:
        source.train().load(SIZE, classes=("a", "b"))
    assert raised.value.message.startswith(f"{path}/signs has a class ahead-only")


def test_a_zip_file_of_one_class_is_one_class(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "test" / "stop", tmp_path / "pack" / "stop")
    path = Path(shutil.make_archive(str(tmp_path / "stop"), "zip", tmp_path / "pack"))
    assert read(path)[1].classes == ("stop",)


def test_a_zip_file_without_classes_is_named(tmp_path: Path) -> None:
    signs.write_folder(tmp_path / "pack", 1, seed=0, labelled=False)
    path = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "pack"))
    with pytest.raises(ImagesError, match=r"photos\.zip has no class subfolders"):
        read(path)


def test_an_interrupt_while_pictures_are_read_leaves_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.make_archive(str(tmp_path / "signs"), "zip", small)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def interrupt(done: int, of: int) -> None:
        assert list((tmp_path / "temporary").iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_source(path) as source:
        source.train().load(SIZE, on_progress=interrupt)
    assert not list((tmp_path / "temporary").iterdir())


def test_named_sets(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniatures.cifar10(tmp_path, monkeypatch)
    miniatures.gtsrb(tmp_path)
    divided, train, test = read(f"cifar10:{tmp_path}")
    assert (divided, len(train), len(test), len(test.classes)) == (True, 100, 20, 10)
    divided, train, test = read(f"gtsrb:{tmp_path}", download=True)
    assert (divided, len(train), len(test), len(test.classes)) == (True, 86, 43, 43)
    shutil.copytree(small, tmp_path / "imagenet")
    (tmp_path / "imagenet" / "test").rename(tmp_path / "imagenet" / "val")
    divided, train, test = read(f"imagenet:{tmp_path / 'imagenet'}")
    assert (divided, len(train), len(test), test.classes) == (True, 24, 16, tuple(sorted(signs.CLASSES)))


def test_a_part_that_is_not_asked_for_need_not_be_there(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "test", tmp_path / "val")
    with open_source(f"imagenet:{tmp_path}") as source:
        assert len(source.test().load(SIZE)) == 16
        with pytest.raises(ImagesError, match="there is no ImageNet in"):
            source.train()


def test_the_home_folder_is_known_behind_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    miniatures.gtsrb(tmp_path / "sets")
    assert len(read("gtsrb:~/sets")[2]) == 43


@pytest.mark.parametrize("name", ["C:pictures", "photos:2024", "cifar10:here", "gtsrb:"])
def test_a_folder_may_have_a_colon_in_its_name(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small / "test", tmp_path / name)
    assert len(read(name)[1]) == 16
    assert len(read(tmp_path / name)[1]) == 16


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing", "missing does not exist"),
        ("missing/folder:x", "missing/folder:x does not exist"),
        ("C:\\images", "does not exist"),
        ("C:/pictures", "does not exist"),
        ("mnist:here", "there is no data set called mnist, and no folder mnist:here"),
        ("cifar10:", "cifar10: names no folder"),
        ("cifar10", "cifar10 names no folder"),
        ("cifar10:missing", "there is no CIFAR-10 in missing"),
        ("gtsrb:missing", "there is no GTSRB in missing"),
        ("imagenet:missing", "there is no ImageNet in missing"),
        ("text", "text is no zip file"),
    ],
)
def test_what_names_nothing_ends_in_one_line_and_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no images")
    with pytest.raises(ImagesError) as raised:
        read(spec)
    assert message in raised.value.message
    assert raised.value.hint
    assert [entry.name for entry in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("spec", ["FOLDER", "imagenet:FOLDER"])
def test_nothing_is_fetched_for_what_cannot_be(small: Path, spec: str) -> None:
    with pytest.raises(UsageError, match="fetch"):
        read(spec.replace("FOLDER", str(small)), download=True)
