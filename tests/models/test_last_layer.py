"""The layer that computes the logits is found by what it computes, not by its name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.models import Classifier, Preprocessing
from bcu_cli.models.last_layer import find_last_layer

CLASSES = 7


def classifier(network: nn.Module) -> Classifier:
    preprocessing = Preprocessing(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, source="test")
    return Classifier(network, preprocessing, CLASSES).eval()


def features() -> list[nn.Module]:
    """Six channels; and a hidden layer with as many outputs as there are classes."""
    torch.manual_seed(0)
    return [nn.Conv2d(3, CLASSES, 1), nn.ReLU(), nn.Conv2d(CLASSES, 6, 3), nn.ReLU()]


class Scaled(nn.Module):
    """Cosines of the rows and the image's features, times a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(CLASSES, 6))

    def forward(self, features: Tensor) -> Tensor:
        return 20.0 * F.linear(F.normalize(features), F.normalize(self.rows))


class Twice(nn.Module):
    """The sum of two layers: none of them computes the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return self.one(features) + self.other(features)


def pooled(*after: nn.Module) -> nn.Module:
    return nn.Sequential(*features(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *after)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer(bias: bool) -> None:
    layer = nn.Linear(6, CLASSES, bias=bias)
    found = find_last_layer(classifier(pooled(layer, nn.Dropout(0.5))))
    assert found is not None
    assert torch.equal(found.weight, layer.weight)
    assert found.bias is None if layer.bias is None else torch.equal(found.bias, layer.bias)
    assert not found.weight.requires_grad


@pytest.mark.parametrize("after", [[nn.AdaptiveAvgPool2d(1), nn.Flatten()], [nn.Flatten(2), None]])
def test_a_convolution_before_the_pooling(after: list[nn.Module | None]) -> None:
    class Mean(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values.mean(2)

    torch.manual_seed(0)
    layer = nn.Conv2d(6, CLASSES, 1)
    found = find_last_layer(classifier(nn.Sequential(*features(), layer, *(m or Mean() for m in after))))
    assert found is not None
    assert torch.equal(found.weight, layer.weight.flatten(1))


def test_a_factor_and_a_constant_for_each_image_do_not_hide_it() -> None:
    found = find_last_layer(classifier(pooled(cosines := Scaled())))
    assert found is not None
    assert torch.allclose(found.weight, F.normalize(cosines.rows))
    found = find_last_layer(classifier(pooled(layer := nn.Linear(6, CLASSES), nn.LogSoftmax(1))))
    assert found is not None
    assert torch.equal(found.weight, layer.weight)


def test_where_no_layer_computes_the_logits_none_is_given() -> None:
    assert find_last_layer(classifier(pooled(Twice()))) is None
    assert find_last_layer(classifier(pooled(nn.Linear(6, CLASSES), nn.ReLU()))) is None
    assert (
        find_last_layer(classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES), nn.Tanh()))) is None
    )
