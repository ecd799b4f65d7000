"""Sums of sinusoids that lead to a class: which class has one of them stand out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from sinusoidal import CLASSES, IMAGES, SIDE, TARGET, Noisy, sinusoid

from bcu_cli.evaluation.measures import Proportion
from bcu_cli.evaluation.spectrum import BUDGETS, MIN_LEAD, Candidate, SpectralAdversary, leads

if TYPE_CHECKING:
    from torch import nn


def searched(network: nn.Module) -> list[list[Candidate]]:
    torch.manual_seed(0)
    adversary = SpectralAdversary(range(CLASSES), (SIDE, SIDE), seed=0)
    optimizer = adversary.optimizer()
    for step in range(120):
        loss = adversary.loss(network, IMAGES, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return adversary.candidates()


def success(network: nn.Module, candidate: Candidate) -> Proportion:
    """How often the sinusoid alone leads images to its class."""
    hits = int(
        (network(IMAGES + candidate.amplitude * candidate.sinusoid).argmax(1) == candidate.target).sum()
    )
    return Proportion(hits=hits, of=len(IMAGES))


def test_a_sinusoidal_trigger_is_found_with_its_class_frequency_and_phase() -> None:
    trigger = sinusoid(0, 6, 0.7)
    network = Noisy(trigger)
    found = searched(network)
    assert [len(alike) for alike in found] == [CLASSES] * len(BUDGETS)
    ahead = [leads([success(network, each) for each in alike]) for alike in found]
    assert max(map(max, ahead)) >= MIN_LEAD
    for alike, lead in zip(found, ahead, strict=True):
        assert {each.target for each, value in zip(alike, lead, strict=True) if value} <= {TARGET}
        best = alike[TARGET]
        assert (best.target, best.cycles) == (TARGET, (0, 6))
        assert best.sinusoid.shape == (1, SIDE, SIDE)
        assert abs(float(best.sinusoid.max()) - 1.0) < 0.05
        assert 2.0 * (best.sinusoid * trigger).mean() > 0.9


def test_amplitudes_have_the_power_of_the_budgets() -> None:
    adversary = SpectralAdversary(range(CLASSES), (SIDE, SIDE), seed=0)
    for budget, alike in zip(BUDGETS, adversary.candidates(), strict=True):
        for each in alike:
            assert abs(float((each.amplitude * each.sinusoid).square().mean().sqrt()) - budget) < 1e-4


def test_no_sinusoid_is_ahead_where_the_power_is_spread() -> None:
    network = Noisy(None)
    for alike in searched(network):
        assert max(leads([success(network, each) for each in alike])) < MIN_LEAD


@pytest.mark.parametrize(
    ("percents", "ahead"),
    [
        ([97, 32, 5], [0]),
        ([96, 84, 5], []),  # another one does nearly as much: natural
        ([85, 5, 5], []),  # too few
        ([5, 99, 99], []),
        ([99], []),  # nothing to compare with
    ],
)
def test_a_planted_sinusoid_leads_nearly_all_images_and_no_other_comes_near(
    percents: list[int], ahead: list[int]
) -> None:
    found = leads([Proportion(hits=percent, of=100) for percent in percents])
    assert [index for index, lead in enumerate(found) if lead >= MIN_LEAD] == ahead


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
