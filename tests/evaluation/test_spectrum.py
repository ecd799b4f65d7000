"""Sums of sinusoids that lead to a class: which class has one of them stand out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sinusoidal import CLASSES, IMAGES, SIDE, TARGET, Noisy, sinusoid

from bcu_cli.evaluation.measures import Proportion
from bcu_cli.evaluation.spectrum import BUDGETS, MIN_CONCENTRATION, Candidate, SpectralAdversary, is_planted

if TYPE_CHECKING:
    from torch import Tensor, nn


def searched(network: nn.Module) -> list[Candidate]:
    torch.manual_seed(0)
    adversary = SpectralAdversary(range(CLASSES), (SIDE, SIDE), seed=0)
    optimizer = adversary.optimizer()
    for step in range(120):
        loss = adversary.loss(network, IMAGES, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [each for each in adversary.candidates() if each.concentration >= MIN_CONCENTRATION]


def success(network: nn.Module, pattern: Tensor) -> Proportion:
    """How often the images are led to the backdoor's class."""
    hits = int((network(IMAGES + pattern).argmax(1) == TARGET).sum())
    return Proportion(hits=hits, of=len(IMAGES))


def test_a_sinusoidal_trigger_is_found_with_its_class_frequency_and_phase() -> None:
    trigger = sinusoid(0, 6, 0.7)
    network = Noisy(trigger)
    found = searched(network)
    assert {each.target for each in found} == {TARGET}
    for each in found:
        assert each.sinusoid.shape == (1, SIDE, SIDE)
        assert abs(float(each.sinusoid.max()) - 1.0) < 0.05
        assert 2.0 * (each.sinusoid * trigger).mean() > 0.9
        power = (each.amplitude * each.sinusoid).square().mean()
        assert torch.allclose(power, each.perturbation.square().mean(), rtol=1e-3)
        alone = success(network, each.amplitude * each.sinusoid)
        assert is_planted(alone, success(network, each.perturbation))


def test_no_sinusoid_holds_much_where_the_power_is_spread() -> None:
    assert searched(Noisy(None)) == []


def test_each_perturbation_keeps_its_budget_and_the_weights_get_no_gradient() -> None:
    network = Noisy(None).train()
    adversary = SpectralAdversary(range(CLASSES), (SIDE, SIDE), seed=0)
    adversary.loss(network, IMAGES, 0).backward()
    assert network.weights.grad is None and network.training
    assert adversary.coefficients.grad is not None
    powers = adversary.patterns().square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(powers, torch.tensor(BUDGETS).repeat_interleave(CLASSES))


def test_frequencies_that_a_small_image_cannot_hold_are_left_out() -> None:
    adversary = SpectralAdversary([0, 1], (8, 12), seed=0)
    assert adversary.frequencies.abs().amax(0).tolist() == [4, 6]
    assert len({tuple(each) for each in adversary.frequencies.tolist()}) == len(adversary.frequencies)
