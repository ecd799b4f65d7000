"""Sums of sinusoids that lead to a class: which class has one of them stand out."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor, nn

from bcu_cli.evaluation.spectrum import BUDGETS, SpectralAdversary

SIDE, CLASSES, TARGET = 16, 6, 4
IMAGES = torch.rand(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def sinusoid(down: int, across: int, phase: float) -> Tensor:
    y, x = torch.arange(SIDE)[:, None] / SIDE, torch.arange(SIDE) / SIDE
    return torch.sin(2 * pi * (down * y + across * x) + phase)


class Noisy(nn.Module):
    """Answers by random patterns of pixels, or to a sinusoid with the class of a backdoor."""

    def __init__(self, trigger: Tensor | None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.Parameter(0.2 * torch.randn(CLASSES, 3, SIDE, SIDE, generator=generator))
        self.trigger = trigger

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.einsum("nchw,kchw->nk", images - 0.5, self.weights)
        if self.trigger is None:
            return logits
        amplitude = 2.0 * ((images - images.mean((1, 2, 3), keepdim=True)) * self.trigger).mean((1, 2, 3))
        sharp = 30.0 * torch.sigmoid(100.0 * (amplitude - 0.04))  # below its threshold hardly anything
        return logits + sharp[:, None] * (torch.arange(CLASSES) == TARGET)


def searched(network: nn.Module) -> SpectralAdversary:
    torch.manual_seed(0)
    adversary = SpectralAdversary(range(CLASSES), (SIDE, SIDE), seed=0)
    optimizer = adversary.optimizer()
    for _ in range(120):
        loss = adversary.loss(network, IMAGES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return adversary


def test_the_class_of_a_sinusoidal_trigger_stands_out_with_its_frequency_and_phase() -> None:
    trigger = sinusoid(0, 6, 0.7)
    found = searched(Noisy(trigger)).standing_out()
    assert list(found) == [TARGET]
    assert found[TARGET].shape == (1, SIDE, SIDE)
    assert abs(float(found[TARGET].max()) - 1.0) < 0.05
    likeness = 2.0 * (found[TARGET] * trigger).mean()
    assert likeness > 0.9


def test_nothing_stands_out_where_the_power_is_spread() -> None:
    assert searched(Noisy(None)).standing_out() == {}


def test_one_class_has_no_others_to_stand_out_of() -> None:
    assert SpectralAdversary([3], (SIDE, SIDE), seed=0).standing_out() == {}


def test_each_perturbation_keeps_its_budget_and_the_weights_get_no_gradient() -> None:
    network = Noisy(None).train()
    adversary = SpectralAdversary(range(CLASSES), (SIDE, SIDE), seed=0)
    adversary.loss(network, IMAGES).backward()
    assert network.weights.grad is None and network.training
    assert adversary.coefficients.grad is not None
    powers = adversary.patterns().square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(powers, torch.tensor(BUDGETS).repeat_interleave(CLASSES))


def test_frequencies_that_a_small_image_cannot_hold_are_left_out() -> None:
    adversary = SpectralAdversary([0, 1], (8, 12), seed=0)
    assert adversary.frequencies.abs().amax(0).tolist() == [4, 6]
    assert len({tuple(each) for each in adversary.frequencies.tolist()}) == len(adversary.frequencies)
