"""Which norm takes the output of which convolution, as the data flows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bcu_cli.errors import ArchitectureError
from bcu_cli.models import build
from bcu_cli.models.channels import find_channels

EXAMPLE = torch.zeros(1, 3, 32, 32)


def scaled_by(network: nn.Module) -> dict[str, str]:
    return {each.name: each.weight_name for each in find_channels(network.eval(), EXAMPLE)}


def test_in_a_resnet_each_convolution_has_its_norm() -> None:
    found = scaled_by(build("resnet8", num_classes=4))
    assert found["conv1"] == "bn1.weight"
    assert found["layer2.0.conv2"] == "layer2.0.bn2.weight"
    assert found["layer2.0.downsample.0"] == "layer2.0.downsample.1.weight"
    assert len(found) == 9


def test_with_pre_activation_the_last_of_a_block_stands_for_itself() -> None:
    found = scaled_by(build("wrn16_1", num_classes=4))
    assert found["layer1.0.conv1"] == "layer1.0.bn2.weight"
    assert found["layer1.0.conv2"] == "layer1.0.conv2.weight"  # added to the shortcut before the next norm
    assert found["conv1"] == "layer1.0.bn1.weight"


def test_without_norms_each_convolution_stands_for_itself() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))
    found = find_channels(network, EXAMPLE)
    assert [(each.weight_name, each.bias_name) for each in found] == [
        ("0.weight", "0.bias"),
        ("2.weight", None),
    ]


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4), nn.Identity()]
)
def test_a_channel_that_is_cut_is_zero_and_a_silenced_one_constant(norm: nn.Module, cut: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), copy.deepcopy(norm), nn.Conv2d(4, 4, 3)).eval()
    for values in (getattr(network[1], "running_mean", None), getattr(network[1], "bias", None)):
        if values is not None:
            nn.init.constant_(values, 0.7)
    first = find_channels(network, EXAMPLE)[0]
    (first.zero_out if cut else first.zero_scale)(torch.tensor([2]))
    maps = network[:2](torch.randn(2, 3, 32, 32))
    assert maps[:, 2].std().item() == pytest.approx(0, abs=1e-6)
    assert not cut or maps[:, 2].abs().max() == 0
    assert maps[:, 1].std() > 0


def test_a_network_of_one_convolution_is_not_pruned() -> None:
    with pytest.raises(ArchitectureError, match="1 convolution"):
        find_channels(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 2)), EXAMPLE)
