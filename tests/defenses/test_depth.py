from __future__ import annotations

import pytest
import torch
import torchvision
from scripted import script_network
from torch import nn

from bcu_cli.defenses.bcu import RATIOS, BcuOptions
from bcu_cli.defenses.parts.depth import measure
from bcu_cli.defenses.parts.reinit_ratios import ratio_of
from bcu_cli.errors import ArchitectureError
from bcu_cli.models import build

IMAGES = torch.zeros(2, 3, 32, 32)


def depths(network: nn.Module, images: torch.Tensor = IMAGES) -> dict[str, int]:
    return {layer.name: layer.depth for layer in measure(network.eval(), images)}


def test_resnet18_gets_the_papers_ratios_block_by_block() -> None:
    found = depths(build("resnet18_cifar", num_classes=10))
    assert max(found.values()) == 18
    options = BcuOptions()
    expected = {"conv1": RATIOS[0], "fc": RATIOS[-1]}
    for block in range(8):
        expected[f"layer{block // 2 + 1}.{block % 2}."] = RATIOS[1 + block]
    for name, depth in found.items():
        ratio = next(ratio for prefix, ratio in expected.items() if name.startswith(prefix))
        assert ratio_of(depth, 18, options) == ratio, name


def test_a_shortcut_lies_beside_the_first_convolution_of_its_block() -> None:
    found = depths(build("resnet18_cifar", num_classes=10))
    assert found["layer2.0.downsample.0"] == found["layer2.0.conv1"] == 6


def test_vgg_is_no_single_depth_and_names_mean_nothing() -> None:
    found = depths(build("vgg16_bn_cifar", num_classes=10))
    assert sorted(found.values()) == list(range(1, len(found) + 1))


def test_functional_and_in_place_operations_keep_the_depth() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.a = nn.Conv2d(3, 4, 1)
            self.b = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu_(self.a(x)).mul_(2)
            y += torch.cat([self.b(y)[:, :2], y[:, 2:]], 1)
            return self.last(y.mean((2, 3)))

    assert depths(Odd()) == {"a": 1, "b": 2, "last": 3}


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:convnext_atto", "torchvision:vit_b_32"])
def test_transformers_and_others_are_measured(name: str) -> None:
    with torch.device("meta"):
        network = build(name, num_classes=10)
        found = depths(network, torch.zeros(1, 3, 224, 224))
    deepest = max(found.values())
    assert deepest > 12
    assert [layer for layer, depth in found.items() if depth == deepest] == [list(found)[-1]]


@pytest.mark.parametrize("example", [None, IMAGES], ids=["scripted", "traced"])
def test_torchscript_is_measured_as_the_network_itself(example: torch.Tensor | None) -> None:
    network = torchvision.models.resnet18(num_classes=4).eval()
    found = depths(network)
    assert max(found.values()) > 15
    assert depths(script_network(network, example)) == found


def test_nothing_to_reinitialise() -> None:
    with pytest.raises(ArchitectureError, match="neither a convolution nor a linear layer"):
        measure(nn.Sequential(nn.ReLU()), IMAGES)
