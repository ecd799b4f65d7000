"""Wrong input on purpose: one line that says what is wrong, a hint, exit code 2, nothing written."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bcu_cli.checkpoints import writing


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def language_model(path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(9, 4), "lm_head.weight": torch.zeros(9, 4)}, path)


def one_class(path: Path) -> None:
    from bcu_cli.models import build

    save_file(build("resnet20", num_classes=1).state_dict(), path)


def with_nan(path: Path) -> None:
    from bcu_cli.models import build

    weights = build("resnet20", num_classes=4).state_dict()
    weights["fc.weight"][1, 2] = float("nan")
    save_file(weights, path)


def evil_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Evil(path.with_name("canary"))}))


def evil_zip(path: Path) -> None:
    torch.save(OrderedDict(weight=Evil(path.with_name("canary"))), path)


def truncated(path: Path) -> None:
    with_nan(path)
    path.write_bytes(path.read_bytes()[:-1000])


MODELS = {
    "missing": (lambda path: None, "does not exist|no such file"),
    "empty": (lambda path: path.touch(), "empty"),
    "truncated": (truncated, "cut short or damaged|damaged"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "text": (lambda path: path.write_text("# Model card\nThis is no model.\n"), "text"),
    "evil_pickle": (evil_pickle, r"(os|posix)\.system"),
    "evil_zip": (evil_zip, r"(os|posix)\.system"),
    "language_model": (language_model, "language model"),
    "nan": (with_nan, r"NaN or Inf .*fc\.weight"),
    "one_class": (one_class, "one output"),
    "other_tensors": (lambda path: save_file({"a.weight": torch.zeros(3, 3)}, path), "architecture"),
}


NO_FAULT = {"language_model", "one_class", "other_tensors"}
"""Cases in which the file is sound and safe: inspect notes what bcu cannot do with it."""


@pytest.mark.parametrize("command", ["cleanse", "evaluate", "inspect"])
@pytest.mark.parametrize("case", MODELS)
def test_models(bcu, tmp_path: Path, photos: Path, labelled: Path, command: str, case: str) -> None:
    make, expected = MODELS[case]
    path, out = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    make(path)
    options = {"cleanse": ["--images", photos, "--out", out], "evaluate": ["--data", labelled], "inspect": []}
    ran = bcu(command, path, *options[command])
    if command == "inspect" and case.startswith("evil"):  # looking at it is what inspect is for: a verdict
        assert ran.code == 1
        assert "system" in ran.out
    elif command == "inspect" and case in NO_FAULT:
        assert ran.code == 0
        assert re.search(expected, " ".join(ran.out.split())), ran.out
    else:
        assert ran.code == 2
        assert "hint: " in ran.err
        assert "model.safetensors" in ran.error
        assert re.search(expected, ran.error), ran.error
    assert not out.exists()
    assert not (tmp_path / "canary").exists()
    assert not list(tmp_path.glob(".bcu-*"))


def test_an_error_is_json_where_json_was_asked_for(bcu, tmp_path: Path) -> None:
    ran = bcu("evaluate", tmp_path / "missing.pt", "--data", tmp_path, "--json")
    assert ran.code == 2
    assert set(ran.json["error"]) == {"message", "hint"}


def cleanse(bcu, model: Path, out: Path, images: Path, *more: object):
    words = ["--method", "bcu", "--images", images, "--out", out, "--epochs", 1, *more]
    return bcu("cleanse", model, *words)


def test_images_without_pictures(bcu, untrained: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("no image")
    ran = cleanse(bcu, untrained, tmp_path / "out.safetensors", tmp_path / "docs")
    assert ran.code == 2
    assert "holds 0 readable images; at least 32 are needed" in ran.error


@pytest.mark.parametrize("images", ["missing", "file"])
def test_images_that_are_no_folder(bcu, untrained: Path, tmp_path: Path, images: str) -> None:
    (tmp_path / "file").touch()
    ran = cleanse(bcu, untrained, tmp_path / "out.safetensors", tmp_path / images)
    assert ran.code == 2
    assert images in ran.error


def test_out_equal_to_the_input_also_through_a_link(
    bcu, untrained: Path, photos: Path, tmp_path: Path
) -> None:
    before = untrained.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(untrained)
    for out in (untrained, tmp_path / "link.safetensors"):
        ran = cleanse(bcu, untrained, out, photos)
        assert ran.code == 2
        assert "is the input" in ran.error
    assert untrained.read_bytes() == before


def test_out_in_a_folder_that_is_not_there(bcu, untrained: Path, photos: Path, tmp_path: Path) -> None:
    ran = cleanse(bcu, untrained, tmp_path / "no" / "out.safetensors", photos)
    assert ran.code == 2
    assert "there is no folder" in ran.error


def test_out_that_is_a_folder(bcu, untrained: Path, photos: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, Path(), Path("/")):  # the last two have no name
        ran = cleanse(bcu, untrained, folder, photos)
        assert (ran.code, ran.error) == (2, f"error: {folder} cannot be written: it is a folder")


@pytest.mark.parametrize("command", ["cleanse", "evaluate"])
def test_the_folder_that_one_is_in(
    bcu, untrained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """It has no name, and holds no model here."""
    monkeypatch.chdir(tmp_path)
    words = {"cleanse": ["--images", photos, "--out", "out.pth"], "evaluate": ["--data", photos]}
    ran = bcu(command, ".", *words[command])
    assert (ran.code, ran.error) == (2, "error: . is a folder without a model file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_that_may_not_be_written(bcu, untrained: Path, photos: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    ran = cleanse(bcu, untrained, tmp_path / "out.safetensors", photos)
    assert ran.code == 2
    assert "no permission" in ran.error


def test_no_permission_is_found_before_the_work(
    bcu, untrained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing.os, "access", lambda path, mode: not mode & os.W_OK)
    ran = cleanse(bcu, untrained, tmp_path / "out.safetensors", photos)
    assert ran.code == 2
    assert "no permission" in ran.error


def test_a_full_disk_leaves_the_old_file(
    bcu, untrained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    ran = cleanse(bcu, untrained, out, photos)
    assert ran.code == 2
    assert "no space left on device" in ran.error
    assert out.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors"]


def test_a_batch_that_does_not_fit_memory_is_halved_and_the_run_goes_on(
    bcu, untrained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcu_cli.models.classifier import Classifier

    forward, sizes = Classifier.forward, []

    def small(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        if self.training and len(images) > 40:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", small)
    ran = cleanse(bcu, untrained, tmp_path / "out.safetensors", photos)
    assert ran.code == 0
    assert max(sizes[-20:]) <= 320
    assert (tmp_path / "out.safetensors").exists()


def test_a_damaged_picture_is_skipped_with_a_warning(
    bcu, untrained: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in list(photos.iterdir())[:60]:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = cleanse(bcu, untrained, tmp_path / "out.safetensors", folder, "--json")
    assert ran.code == 0
    assert "warning: 1 file in" in ran.err
    assert "warning: 52 training images are few" in ran.err
    assert [Path(entry["path"]).name for entry in ran.json["images"]["skipped"]] == ["broken.png"]


BY_BCU = ["cleanse", "MODEL", "--images", "PHOTOS", "--out", "OUT", "--method", "bcu"]


@pytest.mark.parametrize(
    "words",
    [
        ["cleanse"],
        ["nonsense"],
        ["cleanse", "MODEL", "--images", "PHOTOS", "--out", "OUT", "--epochs", "many"],
        [*BY_BCU, "--strength", "-1"],
        [*BY_BCU, "--ratios", "0.1,x,0.1"],
        ["cleanse", "MODEL", "--images", "PHOTOS", "--out", "OUT", "--format", "onnx"],
        ["cleanse", "MODEL", "--images", "PHOTOS", "--out", "OUT", "--device", "cuda:99"],
        ["cleanse", "MODEL", "--images", "PHOTOS", "--out", "OUT", "--arch", "resnet21"],
        ["cleanse", "MODEL", "--images", "PHOTOS", "--out", "OUT", "--arch", "resnet56"],
        ["cleanse", "MODEL", "--images", "PHOTOS", "--out", "OUT", "--mean", "0.5,0.5"],
        ["cleanse", "MODEL", "--images", "PHOTOS", "--out", "OUT", "--mean", "120,110,100"],
        ["cleanse", "MODEL", "--images", "PHOTOS", "--out", "OUT", "--std", "0.5,0.5,58"],
        ["cleanse", "MODEL", "--images", "PHOTOS", "--out", "OUT", "--max-images", "10"],
        [*BY_BCU, "--epochs", "3", "--learning-rate", "1e30"],  # ends in NaN or Inf
        ["evaluate", "MODEL", "--data", "LABELLED", "--trigger", "nothing"],
        ["evaluate", "MODEL", "--data", "LABELLED", "--trigger", "badnets", "--target-class", "8"],
        ["evaluate", "MODEL", "--data", "LABELLED", "--trigger", "badnets", "--trigger-image", "x.png"],
        ["evaluate", "MODEL", "--data", "LABELLED", "--trigger", "badnets", "--alpha", "0.5"],
        ["evaluate", "MODEL", "--data", "LABELLED", "--trigger-image", "x.png"],  # replaces whole images
        ["evaluate", "MODEL", "--data", "LABELLED", "--trigger-image", "x.png", "--alpha", "0.5"],
        ["evaluate", "MODEL", "--data", "PHOTOS"],
        ["attack", "nothing", "--data", "LABELLED", "--out", "OUT"],
        ["attack", "badnets", "--data", "LABELLED", "--out", "OUT", "--target-class", "8"],
        ["attack", "badnets", "--data", "LABELLED", "--out", "OUT", "--setting", "size=large"],
        ["attack", "badnets", "--data", "PHOTOS", "--out", "OUT"],
    ],
)
def test_options_that_make_no_sense(
    bcu, untrained: Path, photos: Path, labelled: Path, tmp_path: Path, words: list[str]
) -> None:
    out = tmp_path / "out.safetensors"
    names = {"MODEL": untrained, "PHOTOS": photos, "LABELLED": labelled, "OUT": out}
    ran = bcu(*(names.get(word, word) for word in words))
    assert ran.code == 2
    assert ran.error
    assert "hint: " in ran.err
    assert "should not happen" not in ran.error
    assert not list(tmp_path.iterdir())


def test_labels_are_not_taken_from_folders_of_parts(
    bcu, untrained: Path, labelled: Path, tmp_path: Path
) -> None:
    for part in ("train", "test"):
        shutil.copytree(labelled, tmp_path / "parts" / part)
    words = ["cleanse", untrained, "--images", tmp_path / "parts", "--out", tmp_path / "o", "--method", "ft"]
    ran = bcu(*words)
    assert ran.code == 2
    assert "has parts to train and to measure on" in ran.error


def one_class_folder(path: Path, labelled: Path) -> Path:
    shutil.copytree(labelled / "test" / "stop", path / "stop")
    return path


def empty_class(path: Path, labelled: Path) -> Path:
    shutil.copytree(labelled / "test", path)
    (path / "zebra").mkdir()
    return path


def no_zip(path: Path, labelled: Path) -> Path:
    path.write_text("no zip")
    return path


def damaged_zip(path: Path, labelled: Path) -> Path:
    packed = Path(shutil.make_archive(str(path), "zip", labelled / "test"))
    content = bytearray(packed.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    packed.write_bytes(content)
    return packed


def leaving_zip(path: Path, labelled: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../stop/a.png", b"")
    return path


DATA = {
    "one_class": (one_class_folder, "has one class alone, stop", "has 1 class, the model has 10"),
    "empty_class": (empty_class, "class zebra in .* no readable image", "has 9 classes, the model has 10"),
    "no_zip": (no_zip, "data is no zip file", "data is no zip file"),
    "damaged_zip": (damaged_zip, r"data\.zip is damaged", r"data\.zip is damaged"),
    "leaving_zip": (leaving_zip, "points out of the archive", "points out of the archive"),
    "missing": (lambda path, _: path, "data does not exist", "data does not exist"),
    "unknown_name": (lambda path, _: f"mnist:{path}", "no data set called mnist", "no data set called mnist"),
    "no_cifar10": (lambda path, _: f"cifar10:{path}", "there is no CIFAR-10 in", "there is no CIFAR-10 in"),
    "no_imagenet": (lambda path, _: f"imagenet:{path}", "there is no ImageNet in", "there is no ImageNet in"),
}


@pytest.mark.parametrize("command", ["attack", "evaluate"])
@pytest.mark.parametrize("case", DATA)
def test_data(bcu, labelled: Path, tmp_path: Path, command: str, case: str) -> None:
    from bcu_cli.models import build

    make, *expected = DATA[case]
    data, out, model = make(tmp_path / "data", labelled), tmp_path / "out.safetensors", tmp_path / "model"
    save_file(build("resnet20", num_classes=10).state_dict(), model)  # names no classes
    options = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    words = {"attack": ["badnets", "--out", out, "--arch", "resnet20"], "evaluate": [model, *options]}
    ran = bcu(command, *words[command], "--data", data)
    assert ran.code == 2
    assert re.search(expected[command == "evaluate"], ran.error), ran.error
    assert "hint: " in ran.err
    assert not out.exists()


def test_one_class_is_enough_for_a_model_that_names_its_own(
    bcu, untrained: Path, labelled: Path, tmp_path: Path
) -> None:
    ran = bcu("evaluate", untrained, "--data", one_class_folder(tmp_path / "data", labelled), "--json")
    assert ran.code == 0
    assert ran.json["models"][0]["acc"]["of"] == 25


def test_an_interrupt_while_a_zip_file_is_read_leaves_nothing(
    bcu, untrained: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcu_cli.images import folder

    packed = shutil.make_archive(str(tmp_path / "signs"), "zip", labelled)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def interrupt(*_: object, **__: object) -> None:
        assert list((tmp_path / "temporary").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "decode_many", interrupt)
    assert bcu("evaluate", untrained, "--data", packed).code == 130
    assert not list((tmp_path / "temporary").iterdir())


def test_a_zip_file_is_measured_as_the_folder_is(
    bcu, untrained: Path, labelled: Path, tmp_path: Path
) -> None:
    packed = shutil.make_archive(str(tmp_path / "signs"), "zip", labelled)
    rows = [
        bcu("evaluate", untrained, "--data", data, "--json").json["models"][0] for data in (labelled, packed)
    ]
    assert rows[0]["acc"] == rows[1]["acc"]
    assert rows[0]["images"]["sha256"] == rows[1]["images"]["sha256"]
    assert rows[1]["images"]["path"] == f"{packed}/test"


def test_download_reaches_the_data_set(
    bcu, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import utils

    def refuse(url: str, max_hops: int) -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(utils, "_get_redirect_url", refuse)
    out = tmp_path / "out.safetensors"
    for words in (["evaluate", untrained], ["attack", "badnets", "--out", out, "--arch", "resnet20"]):
        ran = bcu(*words, "--data", f"cifar10:{tmp_path / 'sets'}", "--download")
        assert ran.code == 2
        assert "could not be fetched" in ran.error
        assert "Network is unreachable" in ran.error
        assert not out.exists()


def test_a_debug_run_shows_the_traceback(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from bcu_cli.cli.app import run

    assert run(["evaluate", str(tmp_path / "missing.pt"), "--data", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_a_torchvision_that_does_not_fit_torch_is_explained(
    bcu, untrained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcu_cli import checkpoints

    def broken(path: Path, **_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(checkpoints, "read", broken)
    ran = bcu("cleanse", untrained, "--images", photos, "--out", tmp_path / "out.safetensors")
    assert ran.code == 2
    assert "not built for each other" in ran.error
    assert "pip install" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sig", "--setting", "sgi.delta=60"], "no attack is called sgi"),
        (["none", "--setting", "delta=60"], "a clean network has no trigger"),
        (["none", "--poison-rate", "0.2"], "a clean network has no trigger"),
        (["badnets", "--preview", "sheet.gif"], "is not a separate .png"),
        (["lc", "--surrogate", "OUT"], "is the input"),
    ],
)
def test_an_attack_that_makes_no_sense(
    bcu, labelled: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    out = tmp_path / "bad.safetensors"
    with_nan(out)
    before = out.read_bytes()
    words = [str(out) if word == "OUT" else word for word in words]
    ran = bcu("attack", *words, "--data", labelled, "--arch", "resnet8", "--out", out)
    assert ran.code == 2
    assert message in ran.err
    assert "hint: " in ran.err
    assert out.read_bytes() == before


def test_nothing_that_is_read_is_written(bcu, untrained: Path, labelled: Path, tmp_path: Path) -> None:
    """Neither an image in a folder, under whatever name, nor what lies beside a model and is read with it."""
    images = tmp_path / "images"
    shutil.copytree(labelled / "test", images)
    picture = next(images.rglob("*.png"))
    (tmp_path / "again.png").hardlink_to(picture)
    model, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    shutil.copy(untrained, model)
    config.write_text("{}")
    cleanse = ("cleanse", model, "--images", images, "--out")
    attack = ("attack", "badnets", "--data", images, "--out")
    evaluate = ("evaluate", model, "--data", images, "--trigger", "badnets", "--preview")
    lines = [(*cleanse, picture), (*cleanse, tmp_path / "again.png"), (*cleanse, config), (*attack, picture)]
    for words in (*lines, (*evaluate, tmp_path / "again.png")):
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        ran = bcu(*words)
        assert ran.code == 2
        assert "is the input" in ran.error
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["clean.onnx", "clean.pt2", "clean.pth", "clean.txt"])
def test_no_model_is_written_under_the_name_of_another_kind_of_file(
    bcu, untrained: Path, photos: Path, labelled: Path, tmp_path: Path, name: str
) -> None:
    attack = ["attack", "badnets", "--data", labelled, "--arch", "resnet8"]
    for words in (["cleanse", untrained, "--images", photos], attack):
        ran = bcu(*words, "--out", tmp_path / name)
        assert ran.code == 2
        suffix = Path(name).suffix
        assert f"{tmp_path / name} ends in {suffix}, and a safetensors file would be written" in ran.error
        assert "hint: name a file that ends in .safetensors" in ran.err
        assert ("--format pickle writes .pt" in ran.err) is (words[0] == "cleanse")
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_users_in_the_place_of_the_state_stays(
    bcu, untrained: Path, photos: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "out.safetensors.resume"
    shutil.copy(untrained, mine)
    before = mine.read_bytes()
    for words in (["cleanse", untrained, "--images", photos], ["cleanse", mine, "--images", photos]):
        ran = bcu(*words, "--out", tmp_path / "out.safetensors")
        assert ran.code == 2
        assert f"{mine} is in the way" in ran.error
    assert mine.read_bytes() == before
    assert list(tmp_path.iterdir()) == [mine]
