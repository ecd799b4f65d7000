"""The package's own networks: sizes as in the papers, shapes, names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bcu_cli.models import BUILTIN_ARCHITECTURES, builtin_names
from bcu_cli.models.networks.builtin import TENSORS
from bcu_cli.models.registry import build


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("resnet18_cifar", 11_173_962, 11_173_962),
        ("resnet18_cifar_w16", 690_000, 710_000),
        ("resnet8", 75_000, 80_000),
        ("resnet14", 170_000, 180_000),
        ("resnet20", 265_000, 275_000),
        ("resnet56", 845_000, 865_000),
        ("wrn16_1", 170_000, 220_000),
        ("wrn28_10", 36_450_000, 36_550_000),
        ("vgg16_bn_cifar", 14_700_000, 14_760_000),
        ("preact_resnet18", 11_165_000, 11_180_000),
        ("mobilenetv2_cifar", 2_296_922, 2_296_922),
        ("densenet121_cifar", 6_956_298, 6_956_298),
        ("densenet121_cifar_appended", 6_956_298, 6_956_298),
        ("densenet_bc100", 769_162, 769_162),
        ("googlenet_cifar", 6_166_250, 6_166_250),
        ("shufflenetv2_x0_5_cifar", 352_042, 352_042),
        ("shufflenetv2_x1_cifar", 1_263_854, 1_263_854),
        ("shufflenetv2_x1_5_cifar", 2_488_874, 2_488_874),
        ("shufflenetv2_x2_cifar", 5_338_026, 5_338_026),
        ("efficientnet_b0_cifar", 3_599_686, 3_599_686),
        ("senet18_cifar", 11_260_354, 11_260_354),
        ("dla34_cifar", 16_291_386, 16_291_386),
        ("dla34_simple_cifar", 15_142_970, 15_142_970),
    ],
)
def test_parameter_count(name: str, low: int, high: int) -> None:
    with torch.device("meta"):
        network = build(name, num_classes=10)
    assert low <= sum(p.numel() for p in network.parameters()) <= high


@pytest.mark.parametrize("name", builtin_names())
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28), (3, 48, 64)])
def test_output_shape(name: str, size: tuple[int, int, int]) -> None:
    with torch.device("meta"), torch.no_grad():
        network = build(name, num_classes=7, input_size=size).train(size == (3, 32, 32))
        assert network(torch.empty(2, *size)).shape == (2, 7)


@pytest.mark.parametrize("name", builtin_names())
def test_the_listed_number_of_tensors_is_right(name: str) -> None:
    with torch.device("meta"):
        state = build(name, num_classes=7).state_dict()
    assert TENSORS[name] == sum(tensor.dim() > 0 for tensor in state.values())


def test_every_listed_name_is_a_network() -> None:
    assert set(builtin_names()) == set(BUILTIN_ARCHITECTURES)


def test_resnet_has_torchvision_names() -> None:
    from torchvision.models import resnet18

    with torch.device("meta"):
        own, theirs = build("resnet18_cifar", num_classes=10), resnet18(num_classes=10)
    assert own.state_dict().keys() == theirs.state_dict().keys()


def test_paper_network_keeps_resolution_in_the_stem() -> None:
    with torch.device("meta"):
        network = build("resnet18_cifar", num_classes=10)
        stem = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert stem.kernel_size == (3, 3)
    assert stem.stride == (1, 1)
    assert not any(isinstance(module, nn.MaxPool2d) for module in network.modules())


@pytest.mark.parametrize("name", ["mobilenetv2_cifar", "senet18_cifar", "dla34_cifar", "densenet_bc100"])
def test_half_the_width_is_half_the_network(name: str) -> None:
    with torch.device("meta"):
        full = next(build(name, num_classes=10).parameters())
        half = build(f"{name}_w{full.shape[0] // 2}", num_classes=10)
        assert next(half.parameters()).shape[0] == full.shape[0] // 2
        assert half(torch.empty(2, 3, 32, 32)).shape == (2, 10)


def test_the_order_of_dense_layers_changes_the_function() -> None:
    first, last = (build(name, num_classes=4).eval() for name in ("densenet_bc100", "densenet_bc100"))
    last.load_state_dict(first.state_dict())
    for module in last.modules():
        if hasattr(module, "newest_first"):
            module.newest_first = True
    images = torch.rand(2, 3, 16, 16)
    assert not torch.allclose(first(images), last(images), atol=1e-3)


@pytest.mark.parametrize("name", ["resnet20", "wrn16_1", "shufflenetv2_x0_5_cifar", "senet18_cifar_w16"])
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)  # the squeezed channel of a narrow senet18 is off for many other weights
    network = build(name, num_classes=3)
    network(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
