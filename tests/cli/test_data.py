"""What ``--data`` names, as the commands load it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import miniatures
import pytest
import torch
from safetensors.torch import save_file

from bcu_cli.errors import ImagesError
from bcu_cli.images.folder import Part
from bcu_cli.images.sources import labelled as sources
from bcu_cli.models import build
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPE = (3, 32, 32)
NOTHING_SAID = loading.ModelOptions(arch=None, input_size=None, mean=None, std=None)


@pytest.fixture
def packed(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The signs as a zip file; nothing that was unpacked may be left at the end."""
    path = Path(shutil.make_archive(str(tmp_path / "signs"), "zip", labelled.parent, labelled.name))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield path
    assert not list(temporary.iterdir())


def test_a_zip_file_gives_the_pictures_of_the_folder(labelled: Path, packed: Path) -> None:
    train, test = loading.load_to_train(str(packed), loading.geometry(SHAPE), seed=0)
    for data, folder in ((train, labelled / "train"), (test, labelled / "test")):
        whole = loading.load_to_measure(str(folder), loading.geometry(SHAPE), ())
        assert torch.equal(data.images, whole.images)
        assert torch.equal(data.labels, whole.labels)
    measured = loading.load_to_measure(str(packed), loading.geometry(SHAPE), train.classes)
    assert torch.equal(measured.images, test.images)


def test_of_an_undivided_folder_a_tenth_is_held_out_by_the_seed(labelled: Path) -> None:
    folder = str(labelled / "test")
    train, test = loading.load_to_train(folder, loading.geometry(SHAPE), seed=0)
    assert (len(train), len(test)) == (180, 20)
    seen = {image.numpy().tobytes() for image in train.images}
    assert not seen & {image.numpy().tobytes() for image in test.images}
    again, other = (loading.load_to_train(folder, loading.geometry(SHAPE), seed=seed)[1] for seed in (0, 1))
    assert torch.equal(test.images, again.images)
    assert not torch.equal(test.images, other.images)


def test_a_test_part_has_the_labels_of_the_training_part(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled / "train", tmp_path / "train")
    shutil.copytree(labelled / "test" / "stop", tmp_path / "val" / "stop")
    train, test = loading.load_to_train(str(tmp_path), loading.geometry(SHAPE), seed=0)
    assert test.classes == train.classes
    assert test.labels.unique().tolist() == [train.classes.index("stop")]


def test_a_missing_test_part_is_found_before_the_training_part_is_read(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(labelled / "test", tmp_path / "train")
    monkeypatch.setattr(Part, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ImagesError, match="there is no ImageNet in"):
        loading.load_to_train(f"imagenet:{tmp_path}", loading.geometry(SHAPE), seed=0)


def test_too_few_pictures_to_hold_some_out(labelled: Path, tmp_path: Path) -> None:
    for name in ("stop", "yield"):
        (tmp_path / name).mkdir()
        for file in sorted((labelled / "test" / name).iterdir())[:15]:
            shutil.copy(file, tmp_path / name)
    with pytest.raises(ImagesError, match="holds 30 readable images; at least 32 are needed"):
        loading.load_to_train(str(tmp_path), loading.geometry(SHAPE), seed=0)


@pytest.mark.usefixtures("on_screen")
def test_what_is_no_picture_is_warned_of_by_the_name_of_the_zip_file(
    labelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(labelled / "test", tmp_path / "signs")  # zipped without a folder on top
    (tmp_path / "signs" / "stop" / "notes.txt").write_text("no image")
    path = shutil.make_archive(str(tmp_path / "signs"), "zip", tmp_path / "signs")
    loading.load_to_measure(path, loading.geometry(SHAPE), ())
    said = capfd.readouterr().err
    assert f"warning: 1 file in {path} is no readable image, first {path}/stop/notes.txt" in said


def trained_on(spec: str, path: Path) -> Path:
    """A file that says nothing of itself; its BatchNorm statistics are of images normalised by 0.5/0.5."""
    pictures = loading.load_to_measure(spec, loading.geometry(SHAPE), ()).images
    torch.manual_seed(0)
    network = build("resnet20", num_classes=8)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    with torch.no_grad():
        network.train()((pictures[::4].float() / 255.0 - 0.5) / 0.5)
    save_file(network.state_dict(), path)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "cifar10"])
def test_what_a_model_does_not_say_is_found_with_any_kind_of_pictures(
    labelled: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    miniatures.cifar10(tmp_path, monkeypatch, per_batch=100)
    spec = str({"folder": labelled, "zip": packed, "cifar10": f"cifar10:{tmp_path}"}[kind])
    path = trained_on(spec, tmp_path / "model.safetensors")
    opened, open_source = [], sources.open_source
    monkeypatch.setattr(sources, "open_source", lambda *a, **b: opened.append(a) or open_source(*a, **b))
    preprocessing = loading.load_model(path, NOTHING_SAID, pictures=spec).classifier.preprocessing
    assert "BatchNorm statistics" in preprocessing.source
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * 3, (0.5,) * 3)
    assert opened == [(spec,)]


def test_pictures_that_are_not_needed_are_not_opened(untrained: Path) -> None:
    assert loading.load_model(untrained, NOTHING_SAID, pictures="mnist:nowhere").classifier.num_classes == 8
