"""How alike the answers to images and their mirror images are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bcu_cli.models.inputs import mirrored
from bcu_cli.models.preprocessing import Preprocessing

HOW = Preprocessing(input_size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


class Columns(nn.Module):
    """Two logits from the mean of some columns."""

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        value = x[..., self.columns].mean((1, 2, 3))
        return torch.stack([value, -value], 1)


def disagreement(network: nn.Module) -> Tensor:
    images = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return mirrored.disagreement(network, HOW, images, "m")


def test_equal_answers_have_none_and_unrelated_ones_have_two() -> None:
    assert disagreement(Columns(slice(0, 8))).max() < 1e-9
    assert float(disagreement(Columns(slice(0, 3))).mean()) == pytest.approx(2, abs=0.4)


def test_equal_logits_for_all_images_never_win() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x.mean()

    constant, other = disagreement(Constant()), disagreement(Columns(slice(0, 3)))
    assert constant.isinf().all()
    assert not mirrored.is_clearly_least(constant, [other])
    assert not mirrored.is_clearly_least(constant, [constant])


def test_the_least_must_be_low_and_clear() -> None:
    even, nearly, uneven = (disagreement(Columns(slice(0, end))) for end in (7, 7, 5))
    assert mirrored.is_clearly_least(even, [uneven, uneven])
    assert not mirrored.is_clearly_least(even, [uneven, nearly])
    high = torch.full((64,), 0.8)
    assert not mirrored.is_clearly_least(high, [3 * high])
    few = torch.tensor([0.0, 1.0, 2.0])
    assert not mirrored.is_clearly_least(0.1 * few, [few])  # three images are few
