"""Networks of as many channels as no image has: said as such, by every command that reads images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from scripted import torchscript_of

from bcu_cli.models.networks.cifar import NETWORKS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def photos_beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images in two classes."""
    root = tmp_path_factory.mktemp("images")
    for number in range(40):
        folder = root / ("a" if number % 2 else "b")
        folder.mkdir(exist_ok=True)
        Image.effect_noise((32, 32), 50).convert("RGB").save(folder / f"{number}.png")
    return root


def network(path: Path, channels: int, scripted: bool = False) -> Path:
    torch.manual_seed(0)
    model = NETWORKS["resnet8"](2, channels).eval()
    if scripted:
        path.write_bytes(torchscript_of(model, torch.zeros(1, channels, 32, 32)))
    else:
        torch.save(model.state_dict(), path)
    return path


def normalised(channels: int) -> list[str]:
    return ["--mean", ",".join(["0.5"] * channels), "--std", ",".join(["0.5"] * channels)]


@pytest.mark.parametrize("channels", [2, 4, 6, 13])
@pytest.mark.parametrize("said", [True, False])
def test_cleanse(bcu, tmp_path: Path, photos_beside: Path, channels: int, said: bool) -> None:
    model = network(tmp_path / "m.pt", channels)
    out = tmp_path / "out.pt"
    options = normalised(channels) if said else []
    ran = bcu("cleanse", model, "--images", photos_beside, "--method", "bcu", "--out", out, *options)
    assert ran.code == 2
    assert f"the model takes {channels} channels, the images have 3" in ran.error
    assert not out.exists()


@pytest.mark.parametrize("scripted", [False, True])
def test_evaluate_and_scan(bcu, tmp_path: Path, photos_beside: Path, scripted: bool) -> None:
    model = network(tmp_path / "m.pt", 4, scripted)
    for words in (
        ["evaluate", model, "--data", photos_beside, *normalised(4)],
        ["evaluate", model, "--data", photos_beside],
        ["inspect", model, "--scan", "--images", photos_beside, "--device", "cpu", *normalised(4)],
    ):
        ran = bcu(*words)
        assert ran.code == 2
        assert "the model takes 4 channels, the images have 3" in ran.error


def test_inspect_needs_no_images(bcu, tmp_path: Path) -> None:
    assert bcu("inspect", network(tmp_path / "m.pt", 13)).code == 0


def test_a_trigger_of_the_users_own(bcu, tmp_path: Path, photos_beside: Path) -> None:
    model = network(tmp_path / "m.pt", 6)
    trigger = next((photos_beside / "a").iterdir())
    words = [
        "evaluate",
        model,
        "--data",
        photos_beside,
        "--trigger-image",
        trigger,
        "--trigger-mode",
        "add",
        *normalised(6),
    ]
    ran = bcu(*words)
    assert ran.code == 2
    assert "the model takes 6 channels, the images have 3" in ran.error
