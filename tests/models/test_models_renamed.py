"""Architectures found by the shapes of the tensors, whatever their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import field_names
import pytest
import torch
from test_models_load import BY_NAME, source, trained
from torch import nn

from bcu_cli.checkpoints import Format, read
from bcu_cli.errors import ArchitectureError
from bcu_cli.models import build, builtin_names, identify, load
from bcu_cli.models.architectures.index import sum_shapes
from bcu_cli.models.architectures.pairing import pairings
from bcu_cli.models.export import as_stored, write_like

if TYPE_CHECKING:
    from pathlib import Path

CIFAR = BY_NAME["CIFAR-10"]
EQUAL_LOGITS = 1e-5
SMALL = [name for name in field_names.RULES if name not in {"resnet34_cifar", "resnet50_cifar"}]


def meta(name: str, num_classes: int = 7) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build(name, num_classes=num_classes).state_dict()


@pytest.mark.parametrize("name", list(field_names.RULES))
def test_the_usual_names_of_the_field_are_found(name: str, checkpoint_of) -> None:
    state = field_names.renamed(meta(name), field_names.RULES[name])
    found = identify(checkpoint_of(state, format=Format.PICKLE))
    assert name in (found.name, *found.rivals)
    assert found.num_classes == 7
    assert "shapes of the tensors" in found.source
    assert "have other names" in found.source


@pytest.mark.parametrize("name", sorted(set(builtin_names()) - set(field_names.RULES)))
def test_own_networks_are_found_without_names(name: str, checkpoint_of) -> None:
    found = identify(checkpoint_of(field_names.numbered(meta(name))))
    assert name in (found.name, *found.rivals)
    assert found.num_classes == 7


@pytest.mark.parametrize("name", ["mobilenetv2_cifar_w8", "shufflenetv2_x0_5_cifar", "senet18_cifar_w16"])
def test_networks_without_names_give_the_same_logits(name: str, checkpoint_of) -> None:
    network = trained(name, CIFAR)
    loaded = load(checkpoint_of(field_names.numbered(network.state_dict())), images=source())
    assert loaded.architecture.name == name
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded.classifier.network(images), network(images), atol=EQUAL_LOGITS)


@pytest.mark.parametrize("name", SMALL)
def test_a_renamed_network_is_loaded_and_written_under_its_own_names(name: str, tmp_path: Path) -> None:
    network = trained(name, CIFAR)
    state = field_names.renamed(network.state_dict(), field_names.RULES[name])
    path, out = tmp_path / "model.pth", tmp_path / "out.pth"
    torch.save({"net": {f"module.{key}": tensor for key, tensor in state.items()}}, path)
    loaded = load(read(path), images=source())
    assert loaded.architecture.name == name
    assert "BatchNorm statistics agree" in loaded.architecture.source
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded.classifier.network(images), network(images), atol=EQUAL_LOGITS)
        next(loaded.classifier.network.parameters()).mul_(2)
    assert as_stored(loaded, loaded.classifier, Format.PICKLE) == ()
    write_like(loaded, loaded.classifier, out, Format.PICKLE)
    written = torch.load(out, weights_only=True)["net"]
    assert list(written) == [f"module.{key}" for key in state]
    first = next(iter(state))
    for key, tensor in state.items():
        assert torch.equal(written[f"module.{key}"], 2 * tensor if key == first else tensor), key
    assert load(read(out), images=source()).architecture.name == name


@pytest.mark.parametrize("name", ["resnet18_cifar_w16", "resnet20_w24", "wrn16_1"])
@pytest.mark.parametrize("change", [field_names.shortcut_first, field_names.numbered])
def test_another_order_or_no_names_give_the_same_logits(name: str, change, checkpoint_of) -> None:
    network = trained(name, CIFAR)
    state = change(field_names.renamed(network.state_dict(), ((r"^fc", "linear"),)))
    if change is field_names.shortcut_first:
        assert list(state) != [n.replace("fc.", "linear.") for n in network.state_dict()]
    loaded = load(checkpoint_of(state), images=source())
    assert loaded.architecture.name == name
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded.classifier.network(images), network(images), atol=EQUAL_LOGITS)


def test_alphabetical_order_gives_the_same_logits(checkpoint_of) -> None:
    network = trained("resnet20", CIFAR)
    state = field_names.renamed(network.state_dict(), ((r"^fc", "linear"), ("downsample", "shortcut")))
    loaded = load(checkpoint_of(dict(sorted(state.items()))), images=source())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded.classifier.network(images), network(images), atol=EQUAL_LOGITS)


def test_the_averaged_model_and_other_wrappers_are_no_other_network(tmp_path: Path) -> None:
    network = trained("resnet8", CIFAR)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    path, out = tmp_path / "swa.pth", tmp_path / "out.pth"
    torch.save({"state_dict": averaged.state_dict()}, path)
    loaded = load(read(path), images=source())
    assert loaded.architecture.name == "resnet8"
    assert "names and shapes" in loaded.architecture.source
    write_like(loaded, loaded.classifier, out, Format.PICKLE)
    assert list(torch.load(out, weights_only=True)["state_dict"]) == list(averaged.state_dict())
    lightning = {f"model.net.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": lightning, "pytorch-lightning_version": "2.0"}, path)
    assert load(read(path), images=source()).architecture.name == "resnet8"


def test_backbone_and_head(checkpoint_of) -> None:
    state = meta("torchvision:resnet18")
    split = {
        name.replace("fc.", "head.0.") if name.startswith("fc.") else f"backbone.{name}": tensor
        for name, tensor in state.items()
    }
    found = identify(checkpoint_of(split))
    assert found.name == "torchvision:resnet18"
    assert "122 have other names" in found.source or "122 of 122" in found.source


def test_arch_is_taken_for_renamed_tensors(checkpoint_of) -> None:
    state = field_names.renamed(meta("resnet18_cifar"), field_names.RULES["resnet18_cifar"])
    found = identify(checkpoint_of(state), arch="resnet18_cifar")
    assert (found.name, found.rivals) == ("resnet18_cifar", ())
    assert found.source.startswith("--arch")
    with pytest.raises(ArchitectureError, match="does not fit resnet34_cifar"):
        identify(checkpoint_of(state), arch="resnet34_cifar")


def test_without_batchnorm_the_shapes_alone_are_not_believed(checkpoint_of) -> None:
    network = build("torchvision:squeezenet1_1", num_classes=4).eval()
    state = field_names.numbered(network.state_dict())
    options = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": 64}
    with pytest.raises(ArchitectureError, match="it has no BatchNorm to tell") as caught:
        load(checkpoint_of(state), images=source(), **options)
    assert "--arch torchvision:squeezenet1_1" in caught.value.hint
    loaded = load(checkpoint_of(state), arch="squeezenet1_1", images=source(), **options)
    images = torch.rand(2, 3, 64, 64)
    assert torch.allclose(loaded.classifier.network(images), network(images), atol=EQUAL_LOGITS)


def test_statistics_of_another_network_are_refused(checkpoint_of) -> None:
    network = build("resnet20", num_classes=4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.fill_(30)
    state = field_names.numbered(network.state_dict())
    with pytest.raises(ArchitectureError, match="statistics disagree"):
        load(checkpoint_of(state), images=source(), mean=(0.5,) * 3, std=(0.5,) * 3)


def test_sums_of_shapes_add_up_in_any_order() -> None:
    one, other = [(3, 4), (5,), (5,)], [(7, 2)]
    assert sum_shapes([*other, *one[::-1]]) == (sum_shapes(one) + sum_shapes(other)) % 2**64
    assert sum_shapes([(5,)]) != sum_shapes([(5,), (5,)])


def test_pairings_keep_kinds_and_layers() -> None:
    expected = {"a.weight": (4, 4), "a.bias": (4,), "b.weight": (4, 4), "b.bias": (4,), "s": ()}
    ((pairing, words),) = pairings({f"t{i}": shape for i, shape in enumerate(expected.values())}, expected)
    assert pairing == {f"t{i}": name for i, name in enumerate(expected)}
    assert words == "in their order"
    swapped = {"x.bias": (4,), "x.weight": (4, 4), "y.bias": (4,), "y.weight": (4, 4), "z": ()}
    assert pairings(swapped, expected)[0][0] == {
        "x.bias": "a.bias",
        "x.weight": "a.weight",
        "y.bias": "b.bias",
        "y.weight": "b.weight",
        "z": "s",
    }
    assert pairings({"a": (4, 4)}, expected) == []
