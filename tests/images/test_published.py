from __future__ import annotations

import os
import pickle
import shutil
import tarfile
import urllib.error
import zipfile
from pathlib import Path

import miniatures
import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, utils

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding.image import Geometry
from bcu_cli.images.sources.published import cifar10, gtsrb

AS_IT_IS = Geometry(height=32, width=32)


def test_cifar10_has_its_pixels_labels_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniatures.cifar10(tmp_path, monkeypatch)
    train, test = (cifar10(tmp_path, train=part, download=False).load(AS_IT_IS) for part in (True, False))
    assert train.classes == test.classes == tuple(miniatures.CIFAR10_CLASSES)
    assert (len(train), len(test)) == (100, 20)
    assert np.array_equal(train.images[20:40].permute(0, 2, 3, 1), miniatures.pixels(1, 20))
    assert np.array_equal(test.images.permute(0, 2, 3, 1), miniatures.pixels(5, 20))
    assert test.labels.tolist() == [i % 10 for i in range(20)]
    assert str(test.root) == f"cifar10:{tmp_path}"


def test_cifar10_in_another_size_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniatures.cifar10(tmp_path, monkeypatch)
    names = tuple(reversed(miniatures.CIFAR10_CLASSES))
    part = cifar10(tmp_path, train=False, download=False)
    data = part.load(Geometry(channels=1, height=64, width=48), classes=names)
    assert data.images.shape == (20, 1, 64, 48)
    assert data.labels.tolist()[:3] == [9, 8, 7]
    assert part.sample(AS_IT_IS, 5).shape == (5, 3, 32, 32)


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.parametrize("train", [True, False])
def test_a_tampered_batch_is_refused_and_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, train: bool
) -> None:
    miniatures.cifar10(tmp_path, monkeypatch)
    canary = tmp_path / "canary"
    folder = tmp_path / "cifar-10-batches-py"
    (folder / name).write_bytes(pickle.dumps(Evil(canary)))
    opened, load = [], pickle.load

    def watched(file, **options):
        opened.append(file.name.rpartition("/")[2])
        return load(file, **options)

    monkeypatch.setattr(pickle, "load", watched)
    with pytest.raises(ImagesError, match="is not CIFAR-10 as it was published"):
        cifar10(tmp_path, train=train, download=False)
    assert not canary.exists()
    assert name not in opened
    if name != "batches.meta":
        assert opened == []


def test_the_tampered_batch_of_that_test_does_harm_where_nobody_checks(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(("read", "what"), [(cifar10, "CIFAR-10"), (gtsrb, "GTSRB")])
def test_what_is_not_there_names_the_option_that_fetches_it(tmp_path: Path, read, what: str) -> None:
    with pytest.raises(ImagesError, match=f"there is no {what} in {tmp_path}") as raised:
        read(tmp_path, train=True, download=False)
    assert "--download" in raised.value.hint
    assert not list(tmp_path.iterdir())


def pack_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the server of CIFAR-10 would send."""
    miniatures.cifar10(folder, monkeypatch)
    archive = folder / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "tgz_md5", utils.calculate_md5(archive))
    return archive


def offline(monkeypatch: pytest.MonkeyPatch, send) -> None:
    """Nothing is asked of the network: ``send`` stands for it."""
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(utils, "_urlretrieve", send)


def test_cifar10_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, asked = pack_cifar10(tmp_path / "server", monkeypatch), []

    def send(url: str, path: str) -> None:
        asked.append(url)
        shutil.copy(archive, path)

    offline(monkeypatch, send)
    for _ in range(2):
        assert len(cifar10(tmp_path / "here", train=True, download=True).raw_images) == 100
    assert asked == [CIFAR10.url]


def refuse(url: str, path: str) -> None:
    raise urllib.error.URLError("Name or service not known")


def send_nonsense(url: str, path: str) -> None:
    Path(path).write_text("<html>log in to the hotel's network</html>")


@pytest.mark.parametrize(
    ("send", "why"), [(refuse, "Name or service not known"), (send_nonsense, "not found or corrupted")]
)
@pytest.mark.parametrize("read", [cifar10, gtsrb])
def test_a_download_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read, send, why: str
) -> None:
    offline(monkeypatch, send)
    with pytest.raises(ImagesError, match=f"could not be fetched to {tmp_path}.*{why}") as raised:
        read(tmp_path, train=True, download=True)
    assert "network" in raised.value.hint


def test_the_bar_of_a_download_vanishes_where_stderr_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = pack_cifar10(tmp_path / "server", monkeypatch)

    def send(url: str, path: str) -> None:
        for _ in utils.tqdm(range(3)):
            shutil.copy(archive, path)

    offline(monkeypatch, send)
    cifar10(tmp_path / "here", train=True, download=True)
    assert capsys.readouterr() == ("", "")


def test_gtsrb_has_its_pictures_and_labels(tmp_path: Path) -> None:
    miniatures.gtsrb(tmp_path)
    train, test = (gtsrb(tmp_path, train=part, download=False).load(AS_IT_IS) for part in (True, False))
    assert train.classes == test.classes == tuple(f"{i:05d}" for i in range(43))
    assert torch.bincount(train.labels).tolist() == [2] * 43
    for data in (train, test):
        assert torch.equal(data.images[:, 0, 16, 16].long(), data.labels)
    assert not train.skipped  # the tables beside the images are no images that cannot be read


def test_gtsrb_without_some_of_its_folders_keeps_the_labels_of_the_others(tmp_path: Path) -> None:
    miniatures.gtsrb(tmp_path)
    shutil.rmtree(tmp_path / "gtsrb" / "GTSRB" / "Training" / "00003")
    data = gtsrb(tmp_path, train=True, download=False).load(AS_IT_IS)
    assert torch.equal(data.images[:, 0, 16, 16].long(), data.labels)
    with pytest.raises(ImagesError, match="class 00003"):
        gtsrb(tmp_path, train=True, download=False).load(AS_IT_IS, every_class=True)


@pytest.mark.parametrize(
    "table",
    ["", "Filename;ClassId\nx.ppm\n", "File;Class\nx.ppm;3\n", "Filename;ClassId\nx.ppm;stop\n", None],
)
def test_gtsrb_whose_table_is_damaged(tmp_path: Path, table: str | None) -> None:
    miniatures.gtsrb(tmp_path)
    path = tmp_path / "gtsrb" / "GT-final_test.csv"
    path.unlink() if table is None else path.write_text(table)
    with pytest.raises(ImagesError) as raised:
        gtsrb(tmp_path, train=False, download=False).load(AS_IT_IS)
    assert raised.value.hint


@pytest.mark.parametrize("label", [43, -1])
def test_gtsrb_with_a_class_that_it_does_not_have(tmp_path: Path, label: int) -> None:
    miniatures.gtsrb(tmp_path)
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text(f"Filename;ClassId\n00000.ppm;{label}\n")
    with pytest.raises(ImagesError, match="is not GTSRB as it was published"):
        gtsrb(tmp_path, train=False, download=False)


def test_gtsrb_is_fetched_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniatures.gtsrb(tmp_path / "server")
    asked = []

    def send(url: str, path: str) -> None:
        asked.append(url.rpartition("/")[2])
        with zipfile.ZipFile(path, "w") as archive:
            for file in (tmp_path / "server" / "gtsrb").rglob("*"):
                name = str(file.relative_to(tmp_path / "server" / "gtsrb"))
                if ("Final_Test" in name) == ("Images" in url) and ("Training" in name) == (
                    "Training" in url
                ):
                    archive.write(file, name)

    offline(monkeypatch, send)
    monkeypatch.setattr(utils, "check_md5", lambda *_: True)
    assert len(gtsrb(tmp_path / "here", train=False, download=True).load(AS_IT_IS)) == 43
    assert asked == ["GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip"]
    with pytest.raises(ImagesError, match="not whole") as raised:
        gtsrb(tmp_path / "here", train=True, download=False)
    assert "--download" in raised.value.hint
