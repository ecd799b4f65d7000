"""``bcu cleanse X --images DIR --out Y`` without any other option, on files as strangers make them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import field_names
import numpy as np
import pytest
import torch
from helpers import lessen_effort
from PIL import Image
from scripted import torchscript_of
from torch import Tensor, nn

from bcu_cli.defenses import auto
from bcu_cli.defenses.base import Verdict
from bcu_cli.images.sources import signs
from bcu_cli.models import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # of tracers and exporters, which are not what is tested

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR_10 = "mean 0.4914,0.4822,0.4465 and std 0.247,0.2435,0.2616: BatchNorm statistics: CIFAR-10"


class Unknown(nn.Module):
    """A network that bcu has never seen; it accepts any size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.second, self.norm2 = nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24)
        self.last = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.norm2(self.second(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six unlabeled images of each of the eight classes."""
    root = tmp_path_factory.mktemp("few")
    signs.write_folder(root, 6, seed=3, labelled=False)
    return root


@pytest.fixture(scope="module")
def inputs(few: Path) -> Tensor:
    """The images, normalised as CIFAR-10: ``float [48, 3, 32, 32]``."""
    raw = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in sorted(few.iterdir())])
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    return (torch.from_numpy(raw).permute(0, 3, 1, 2) / 255 - mean) / std


def adapted(network: nn.Module, inputs: Tensor) -> nn.Module:
    """The network with BatchNorm statistics of the images, as if they were its training set."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(inputs)
    return network.eval()


@pytest.fixture(scope="module")
def unknown(inputs: Tensor) -> nn.Module:
    torch.manual_seed(0)
    return adapted(Unknown(), inputs)


@pytest.fixture(scope="module")
def state(inputs: Tensor) -> dict[str, Tensor]:
    """The weights of a narrow ResNet-18 for CIFAR under the names that are usual in the field."""
    torch.manual_seed(0)
    network = adapted(build("resnet18_cifar_w8", num_classes=8), inputs)
    return field_names.renamed(network.state_dict(), field_names.RULES["resnet18_cifar"])


@pytest.fixture
def cleanse(bcu: Any, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Cleanses with the model, the images and the output alone, in a few steps; returns what was said."""
    # The student begins as the original, so one step with the lowest learning rate may change nothing.
    lessen_effort(monkeypatch, canary_steps=1, search_steps=1, fewest_steps=2, epochs=1)
    monkeypatch.setattr(auto, "LEVELS", auto.LEVELS[:2])
    good = Verdict(word="cleansed", why="it was told so")
    monkeypatch.setattr(auto.Auto, "verdict", lambda self: good)

    def call(model: Path, out: Path) -> str:
        ran = bcu("cleanse", model, "--images", few, "--out", out)
        assert ran.code == 0, ran.err
        assert out.exists()
        return str(ran.err)

    return call


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether tensors have the same names, shapes and types, and other finite values."""
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert (tensor.shape, tensor.dtype) == (after[name].shape, after[name].dtype), name
        assert bool(after[name].isfinite().all())
    return any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_torchscript(
    cleanse: Callable[..., str], unknown: nn.Module, inputs: Tensor, tmp_path: Path, kind: str
) -> None:
    model, out = tmp_path / "model.pt", tmp_path / "clean.pt"
    model.write_bytes(torchscript_of(unknown, inputs[:2] if kind == "traced" else None))
    said = cleanse(model, out)
    assert "the file's own TorchScript code runs" in said
    assert f"input size 32x32: size of the images, which the network accepts; {CIFAR_10}" in said
    before, after = (torch.jit.load(str(file)) for file in (model, out))
    assert changed(before.state_dict(), after.state_dict())
    assert after(inputs[:3]).shape == (3, 8)


def test_onnx(cleanse: Callable[..., str], unknown: nn.Module, inputs: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model, out = tmp_path / "model.onnx", tmp_path / "clean.pt"
    keeps_norms = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    torch.onnx.export(unknown, (inputs[:2],), model, dynamo=False, **keeps_norms)
    said = cleanse(model, out)
    assert "the file's own ONNX graph runs" in said
    assert f"input size 32x32: the ONNX graph; {CIFAR_10}" in said
    assert torch.jit.load(str(out))(inputs[:3]).shape == (3, 8)


@pytest.mark.parametrize("any_size", [False, True])
def test_onnx_with_folded_batchnorm_asks_and_names_the_best_two(
    bcu: Any, few: Path, unknown: nn.Module, inputs: Tensor, tmp_path: Path, any_size: bool
) -> None:
    pytest.importorskip("onnx")
    model, out = tmp_path / "model.onnx", tmp_path / "clean.pt"
    axes = {"x": {0: "n", 2: "h", 3: "w"}} if any_size else None
    torch.onnx.export(unknown, (inputs[:2],), model, dynamo=False, input_names=["x"], dynamic_axes=axes)
    ran = bcu("cleanse", model, "--images", few, "--out", out)
    assert ran.code == 2
    if any_size:
        assert re.search(r"32 wide \(consistency .*, and runs at \d+ \(consistency ", ran.err)
        assert re.search(r"hint: give --input-size \d+ or --input-size \d+", ran.err)
    else:
        assert re.search(r"do not decide between .* \(consistency .*\), .* \(consistency ", ran.err)
        assert "hint: give --mean and --std" in ran.err
    assert not out.exists()


def test_what_only_a_graph_can_run_is_not_written_as_onnx(
    bcu: Any, few: Path, unknown: nn.Module, inputs: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    model, out = tmp_path / "model.onnx", tmp_path / "clean.onnx"
    keeps_norms = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    torch.onnx.export(unknown, (inputs[:2],), model, dynamo=False, **keeps_norms)
    ran = bcu("cleanse", model, "--images", few, "--out", out)
    assert ran.code == 2
    assert ran.error == f"error: {out} ends in .onnx, and a torchscript file would be written"
    assert "hint: name a file that ends in .pt\n" in ran.err
    assert not out.exists()


def test_a_network_of_grey_images(cleanse: Callable[..., str], few: Path, tmp_path: Path) -> None:
    raw = np.stack([np.asarray(Image.open(file).convert("L")) for file in sorted(few.iterdir())])
    grey = (torch.from_numpy(raw)[:, None] / 255 - 0.5) / 0.5
    torch.manual_seed(0)
    network = Unknown()
    network.first = nn.Conv2d(1, 12, 3, stride=2, padding=1)
    model, out = tmp_path / "model.pt", tmp_path / "clean.pt"
    model.write_bytes(torchscript_of(adapted(network, grey)))
    said = cleanse(model, out)
    assert "mean 0.5 and std 0.5: BatchNorm statistics: 0.5/0.5" in said
    before, after = (torch.jit.load(str(file)) for file in (model, out))
    assert changed(before.state_dict(), after.state_dict())
    assert after(grey[:3]).shape == (3, 8)


@pytest.mark.parametrize("key", ["net", "state_dict", "model"])
def test_the_resnet_of_the_field(
    cleanse: Callable[..., str], state: dict[str, Tensor], tmp_path: Path, key: str
) -> None:
    model, out = tmp_path / "model.pth", tmp_path / "clean.pth"
    weights = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({key: weights, "acc": 93.1, "epoch": 199}, model)
    said = cleanse(model, out)
    assert "architecture resnet18_cifar_w8: shapes of the tensors, paired in their order" in said
    assert f"input size 32x32: default of resnet18_cifar_w8; {CIFAR_10}" in said
    written = torch.load(out, weights_only=True)
    assert (written["acc"], written["epoch"]) == (93.1, 199)
    assert changed(weights, written[key])


def test_lightning(cleanse: Callable[..., str], state: dict[str, Tensor], tmp_path: Path) -> None:
    model, out = tmp_path / "model.ckpt", tmp_path / "clean.ckpt"
    weights = {f"model.{name}": tensor for name, tensor in state.items()}
    content = {
        "epoch": 9,
        "global_step": 1250,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": weights,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"arch": "resnet18", "num_classes": 8},
    }
    torch.save(content, model)
    said = cleanse(model, out)
    assert "architecture resnet18_cifar_w8: shapes of the tensors, paired in their order" in said
    assert CIFAR_10 in said
    assert "left out of" in said
    written = torch.load(out, weights_only=True)
    assert written["hyper_parameters"] == content["hyper_parameters"]
    assert "optimizer_states" not in written
    assert changed(weights, written["state_dict"])


def test_frozen_torchscript_says_what_to_do(
    bcu: Any, few: Path, unknown: nn.Module, inputs: Tensor, tmp_path: Path
) -> None:
    model = tmp_path / "model.pt"
    torch.jit.save(torch.jit.freeze(torch.jit.trace(unknown, inputs[:2])), model)
    ran = bcu("cleanse", model, "--images", few, "--out", tmp_path / "clean.pt")
    assert ran.code == 2
    assert "its TorchScript code is frozen" in ran.error
    assert "torch.onnx.export(torch.jit.load(FILE)" in ran.err
