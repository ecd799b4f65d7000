"""bcu attack --weights: a training that starts from the network of a file."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from bcu_cli.checkpoints import Format, write
from bcu_cli.errors import ArchitectureError
from bcu_cli.models import Architecture, Classifier, Preprocessing, build, metadata_for
from bcu_cli.models.new_classifier import with_classes
from bcu_cli.workflows import attack_start, loading

if TYPE_CHECKING:
    from pathlib import Path

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.875, interpolation="bicubic"
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A resnet8 of 5 classes."""
    path = tmp_path / "pretrained.safetensors"
    torch.manual_seed(1)
    architecture = Architecture(name="resnet8", source="test", num_classes=5)
    state = build("resnet8", num_classes=5).state_dict()
    write(path, state, format=Format.SAFETENSORS, metadata=metadata_for(architecture, PREPROCESSING))
    return path


def attack(bcu: Any, name: str, weights: Path, labelled: Path, *more: object) -> dict[str, Any]:
    words = ("--weights", weights, "--data", labelled, "--epochs", 1, "--json", *more)
    report: dict[str, Any] = bcu("attack", name, *words).json
    return report


@pytest.mark.parametrize("name", ["none", "badnets"])
def test_all_but_the_last_layer_is_taken_over(
    bcu, weights: Path, labelled: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "bad.safetensors"
    report = attack(bcu, name, weights, labelled, "--out", out, "--learning-rate", 0)
    before, after = load_file(weights), load_file(out)
    trained = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    assert {after["fc.weight"].shape[0], after["fc.bias"].shape[0]} == {8}
    assert all("running" in key or "num_batches" in key or key.startswith("fc.") for key in trained)
    with safe_open(out, "pt") as file:
        said = {key: json.loads(value) for key, value in file.metadata().items()}
    assert (said["bcu.arch"], said["bcu.num_classes"]) == ("resnet8", 8)
    assert (said["bcu.mean"], said["bcu.crop_pct"]) == (list(PREPROCESSING.mean), 0.875)
    assert (said["bcu.interpolation"], len(said["bcu.classes"])) == ("bicubic", 8)
    assert report["weights"]["path"] == str(weights)
    assert str(weights) in {each["path"] for each in report["files_read"]}
    assert report["options"]["arch"] == "resnet8"


def test_a_last_layer_of_as_many_classes_stays(bcu, untrained: Path, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.safetensors"
    attack(bcu, "none", untrained, labelled, "--out", out, "--learning-rate", 0)
    assert torch.equal(load_file(untrained)["fc.weight"], load_file(out)["fc.weight"])


@pytest.mark.parametrize(
    ("words", "rate", "decay"),
    [([], 0.01, 5e-4), (["--optimizer", "adamw"], 1e-4, 0.05), (["--learning-rate", 0.5], 0.5, 5e-4)],
)
def test_usual_settings(
    bcu, weights: Path, labelled: Path, tmp_path: Path, words: list[Any], rate: float, decay: float
) -> None:
    report = attack(bcu, "none", weights, labelled, "--out", tmp_path / "out.safetensors", *words)
    training = report["options"]["training"]
    assert (training["learning_rate"], training["weight_decay"]) == (rate, decay)
    assert report["options"]["pretrained"] is True


def test_lc_starts_its_surrogate_from_the_weights_too(
    bcu, weights: Path, labelled: Path, tmp_path: Path
) -> None:
    report = attack(bcu, "lc", weights, labelled, "--out", tmp_path / "out.safetensors")
    assert [each["stage"] for each in report["training"]] == ["training the surrogate", "training"]


def test_the_file_is_never_overwritten(bcu, weights: Path, labelled: Path) -> None:
    before = weights.read_bytes()
    ran = bcu("attack", "none", "--weights", weights, "--data", labelled, "--out", weights)
    assert ran.code == 2
    assert weights.read_bytes() == before


def test_another_architecture_than_that_of_the_file_is_refused(
    bcu, weights: Path, labelled: Path, tmp_path: Path
) -> None:
    words = ("--weights", weights, "--data", labelled, "--out", tmp_path / "out", "--arch", "resnet18_cifar")
    ran = bcu("attack", "none", *words)
    assert ran.code == 2
    assert "pretrained.safetensors" in ran.err


def test_an_unknown_optimizer_is_refused(bcu, labelled: Path, tmp_path: Path) -> None:
    words = ("--data", labelled, "--out", tmp_path / "out.safetensors", "--optimizer", "adam")
    ran = bcu("attack", "none", *words)
    assert (ran.code, "--optimizer takes sgd, adamw" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "what"), [("torchscript", "code or graph"), ("transformers:a.json", "config")]
)
def test_a_network_that_no_name_gives_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, what: str
) -> None:
    found = SimpleNamespace(
        architecture=Architecture(name=name, source="test", num_classes=7),
        checkpoint=SimpleNamespace(format=Format.TORCHSCRIPT),
    )
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: found)
    with pytest.raises(ArchitectureError, match=f"only its {what}.* tells how to run .*model.pt"):
        attack_start.from_file(tmp_path / "model.pt", loading.ModelOptions(), "data", download=False)


@pytest.mark.parametrize(
    "name", ["resnet8", "torchvision:squeezenet1_1", "timm:deit_tiny_distilled_patch16_224"]
)
def test_every_head_is_replaced(name: str) -> None:
    side = 32 if name == "resnet8" else 224
    preprocessing = Preprocessing(input_size=(3, side, side), mean=(0.5,) * 3, std=(0.5,) * 3)
    model = Classifier(build(name, num_classes=7), preprocessing, 7).eval()
    found = with_classes(model, Architecture(name=name, source="test", num_classes=7), 3, seed=0).eval()
    assert found(torch.rand(2, *preprocessing.input_size)).shape == (2, 3)
    old, new = model.network.state_dict(), found.network.state_dict()
    assert {key for key in old if old[key].shape != new[key].shape} == {
        key for key in old if not torch.equal(old[key], new[key])
    }


def test_a_network_whose_classes_are_fixed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(4, 7)\n")
    architecture = Architecture(name=f"{tmp_path}/own.py:make", source="test", num_classes=7)
    model = Classifier(nn.Linear(4, 7), PREPROCESSING, 7)
    with pytest.raises(ArchitectureError, match="no last layer that can be replaced by one of 3 classes"):
        with_classes(model, architecture, 3, seed=0)
