"""Floating-point operations are counted as a textbook counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from bcu_cli.training.throughput import FlopCounter

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize(("towards_inputs", "passes"), [(True, 3), (False, 2)])
def test_each_gradient_of_a_convolution_costs_as_much_as_its_forward_pass(
    layer: Callable[..., nn.Module], groups: int, towards_inputs: bool, passes: int
) -> None:
    convolution = layer(8, 8, 3, padding=1, groups=groups, bias=False)
    images = torch.zeros(5, 8, 7, 6, requires_grad=towards_inputs)
    with FlopCounter() as counter:
        convolution(images).sum().backward()
    # 5 images of 7x6 pixels, 8 channels from 8 / groups channels each, 3x3 weights
    forward = 2 * 5 * 7 * 6 * 8 * (8 // groups) * 9
    assert counter.total == passes * forward
