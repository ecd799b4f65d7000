"""On real traffic signs, small and at 16x16: a backdoor is implanted, and removed with unlabeled images."""

from __future__ import annotations

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
    (root / "photos").mkdir()
    for name, files in images_of_classes().items():
        names = sorted(files)
        for split, chosen in (("train", names[::4][:300]), ("test", names[2::4][:120])):
            folder = root / "labelled" / split / name
            folder.mkdir(parents=True)
            for file in chosen:
                (folder / file).write_bytes(files[file])
        for file in names[1::4][:180]:
            (root / "photos" / f"{name}-{file}").write_bytes(files[file])
    return root


def images_of_classes() -> dict[str, dict[str, bytes]]:
    """The files of each class by name; the rest of the archive is not unpacked, which is most of it."""
    found: dict[str, dict[str, bytes]] = {name: {} for name in CLASSES}
    with tarfile.open(DATA / "gtsrb.tar.xz") as archive:
        for each in archive:
            folder, _, name = each.name.rpartition("/")
            split, _, label = folder.rpartition("/")
            if split == "gtsrb/train" and label in found and each.isfile():
                found[label][name] = archive.extractfile(each).read()  # type: ignore[union-attr]
            elif split == "gtsrb/train" and label > CLASSES[-1]:
                break  # the folders stand in order
    assert all(found.values())
    return found


def test_a_backdoor_in_real_pictures_is_removed(bcu, signs: Path, tmp_path: Path) -> None:
    bad, clean = tmp_path / "bad.safetensors", tmp_path / "clean.safetensors"
    data = signs / "labelled"
    how = ["--arch", "resnet8", "--input-size", 16, "--epochs", 12, "--batch-size", 32, "--setting", "cell=2"]
    report = bcu("attack", "badnets", "--data", data, "--out", bad, *how, "--json").json
    assert report["acc"]["value"] > 0.9
    assert report["asr"]["value"] > 0.95
    method = ["--method", "bcu", "--strength", 3, "--learning-rate", 0.1, "--batch-size", 32, "--epochs", 20]
    assert bcu("cleanse", bad, "--images", signs / "photos", "--out", clean, *method).code == 0
    trigger = tmp_path / "bad.trigger.safetensors"
    after = bcu("evaluate", clean, "--data", data, "--trigger", trigger, "--json").json["models"][0]
    assert after["asr"]["value"] < 0.2
    assert after["acc"]["value"] > report["acc"]["value"] - 0.05
