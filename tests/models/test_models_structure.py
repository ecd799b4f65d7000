"""The hash of what a network computes: equal for equal functions, different for different ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.models.architectures.structure import UntraceableError, function_hash

if TYPE_CHECKING:
    from collections.abc import Callable


class Net(nn.Module):
    def __init__(self, function: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def hash_of(function: Callable[[Net, Tensor], Tensor]) -> str:
    with torch.device("meta"):
        return function_hash(Net(function), (3, 8, 8))


def relu_in_place(n: Net, x: Tensor) -> Tensor:
    x = n.a(x)
    F.relu_(x)
    return n.b(x)


def slice_in_place(n: Net, x: Tensor) -> Tensor:
    x = n.a(x)
    x[:, :1].relu_()
    return n.b(x)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda n, x: n.a(x) + n.b(x), lambda n, x: n.b(x) + n.a(x)),
        (relu_in_place, lambda n, x: n.b(F.dropout(F.relu(n.a(x)), 0.5, training=False))),
        (lambda n, x: n.a(x).mean((2, 3)), lambda n, x: F.adaptive_avg_pool2d(n.a(x), 1).flatten(1)),
    ],
)
def test_same_function(one, other) -> None:
    assert hash_of(one) == hash_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda n, x: n.a(x), lambda n, x: n.b(x)),
        (lambda n, x: n.a(F.relu(x)), lambda n, x: n.a(F.silu(x))),
        (lambda n, x: n.a(x) - n.b(x), lambda n, x: n.b(x) - n.a(x)),
        (lambda n, x: n.a(x)[:, :, ::2], lambda n, x: n.a(x)[:, :, 1::2]),
        (relu_in_place, lambda n, x: n.b(n.a(x))),
        (slice_in_place, lambda n, x: n.b(n.a(x))),
        (lambda n, x: n.a(x).mean((2, 3)), lambda n, x: n.a(x).amax((2, 3))),
    ],
)
def test_different_function(one, other) -> None:
    assert hash_of(one) != hash_of(other)


def test_epsilon_counts() -> None:
    def with_eps(eps: float) -> str:
        with torch.device("meta"):
            network = Net(lambda n, x: n.bn(x))
        network.bn.eps = eps
        return function_hash(network, (3, 8, 8))

    assert with_eps(1e-5) == with_eps(1e-5) != with_eps(1e-3)


def test_constants_count_by_content() -> None:
    def with_constant(value: float) -> nn.Module:
        network = Net(lambda n, x: n.a(x) * n.scale)
        network.register_buffer("scale", torch.tensor(value), persistent=False)
        return network

    hashes = [function_hash(with_constant(value), (3, 8, 8)) for value in (1.0, 1.0, 2.0)]
    assert hashes[0] == hashes[1] != hashes[2]
    with torch.device("meta"):
        network = with_constant(1.0)
    with pytest.raises(UntraceableError):
        function_hash(network, (3, 8, 8))
