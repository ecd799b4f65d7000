"""On real traffic signs: a backdoor implanted, and removed with unlabeled images. Small, to fit into CI."""

from __future__ import annotations

import shutil
import tarfile
from typing import TYPE_CHECKING

import pytest
from helpers import DATA

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("01", "02", "12", "13", "38")

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of GTSRB: 300 images each to train on, 120 to measure on, 900 others without labels."""
    root = tmp_path_factory.mktemp("gtsrb")
    with tarfile.open(DATA / "gtsrb.tar.xz") as archive:
        inside = {f"gtsrb/train/{name}" for name in CLASSES}
        members = (each for each in archive if each.name.rpartition("/")[0] in inside)
        archive.extractall(root, members, filter="data")
    (root / "photos").mkdir()
    for name in CLASSES:
        files = sorted((root / "gtsrb" / "train" / name).iterdir())
        for split, chosen in (("train", files[::4][:300]), ("test", files[2::4][:120])):
            (root / "labelled" / split / name).mkdir(parents=True)
            for file in chosen:
                shutil.copy(file, root / "labelled" / split / name)
        for file in files[1::4][:180]:
            shutil.copy(file, root / "photos" / f"{name}-{file.name}")
    shutil.rmtree(root / "gtsrb")
    return root


def test_a_backdoor_in_real_pictures_is_removed(bcu, signs: Path, tmp_path: Path) -> None:
    bad, clean = tmp_path / "bad.safetensors", tmp_path / "clean.safetensors"
    data = signs / "labelled"
    how = ["--arch", "resnet20", "--epochs", 12, "--batch-size", 64, "--setting", "cell=2"]
    report = bcu("attack", "badnets", "--data", data, "--out", bad, *how, "--json").json
    assert report["acc"]["value"] > 0.95
    assert report["asr"]["value"] > 0.95
    method = ["--method", "bcu", "--strength", 3, "--learning-rate", 0.1, "--batch-size", 32, "--epochs", 40]
    assert bcu("cleanse", bad, "--images", signs / "photos", "--out", clean, *method).code == 0
    trigger = tmp_path / "bad.trigger.safetensors"
    after = bcu("evaluate", clean, "--data", data, "--trigger", trigger, "--json").json["models"][0]
    assert after["asr"]["value"] < 0.1
    assert after["acc"]["value"] > report["acc"]["value"] - 0.05
