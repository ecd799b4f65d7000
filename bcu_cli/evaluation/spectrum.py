"""Sinusoidal triggers: the strongest sinusoid in a universal perturbation to each class, tried alone.

Sinusoidal patterns mislead clean networks, too, and no gradient finds the one of an attacker (SIG) directly.
But a perturbation that is searched as a sum of sinusoids holds it: where it leads to the target, the
attacker's has more of its power than any other. Tried alone, the strongest sinusoids of clean networks lead
few images to a class, or those to several classes lead as many. So a sinusoid is taken for planted where it
leads nearly all images to its class, and those to other classes far fewer. The idea and the thresholds are
bcu's own (``docs/auto-log.md``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import pi, sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.evaluation.adversary import frozen_in_eval
from bcu_cli.evaluation.measures import log_odds
from bcu_cli.training.optimizers import Adam

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcu_cli.evaluation.measures import Proportion

MAX_CYCLES = 10
"""Most cycles across an image in each direction; in small images, half of the pixels."""
BUDGETS = (0.05, 0.07, 0.1)
"""Root mean squares of the perturbations, on a scale of 0 to 1; there is one of each for each class.

With 0.14 a clean network for traffic signs has a sinusoid that is as far ahead as planted ones are.
"""
MIN_SUCCESS = 0.9
"""Least success of a planted sinusoid."""
MIN_LEAD = 3.0
"""Least lead of a planted sinusoid, in log-odds of success, over the best one to another class.

Planted ones led by 4 and more, natural ones with a success of 80 to 90 % by 1.5 at most
(``docs/auto-log.md``).
"""
LEARNING_RATE = 0.1
DOMINANT = "dominant sinusoid"
"""Kind of the triggers found in this way."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The strongest sinusoid in the perturbation to a class.

    Args:
        target: The class.
        sinusoid: Float ``[1, H, W]``, from -1 to 1.
        amplitude: Amplitude at which it has the power of the whole perturbation, on a scale of 0 to 1.
        cycles: Its cycles down and across the image.
    """

    target: int
    sinusoid: Tensor
    amplitude: float
    cycles: tuple[int, int]


class SpectralAdversary(nn.Module):
    """Trainable grey perturbations that are sums of sinusoids, one of each of ``BUDGETS`` for each class.

    Args:
        targets: The classes.
        size: Height and width of the images.
        seed: Seed of the initial perturbations.

    Attributes:
        frequencies: Cycles down and across the image, int64 ``[F, 2]``.
        coefficients: Share of each sine and then of each cosine, float ``[S, 2F]``, S = budgets x classes.
    """

    frequencies: Tensor
    targets: Tensor
    budgets: Tensor
    basis: Tensor

    def __init__(self, targets: Sequence[int], size: tuple[int, int], *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.size = size
        # frequencies of opposite signs are one: half of the plane holds all
        most_down, most_across = (min(MAX_CYCLES, side // 2) for side in size)
        plane = product(range(most_down + 1), range(-most_across, most_across + 1))
        half = [each for each in plane if each > (0, 0)]
        self.register_buffer("frequencies", torch.tensor(half), persistent=False)
        self.register_buffer("targets", torch.tensor(list(targets)).repeat(len(BUDGETS)), persistent=False)
        budgets = torch.tensor(BUDGETS).repeat_interleave(len(targets))
        self.register_buffer("budgets", budgets, persistent=False)
        self.register_buffer("basis", self._waves(), persistent=False)
        drawn = torch.randn(len(self.targets), 2 * len(half), generator=generator)
        self.coefficients = nn.Parameter(0.1 * drawn)

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the perturbations."""
        return Adam([{"params": [self.coefficients], "lr": LEARNING_RATE}])

    def patterns(self) -> Tensor:
        """The perturbations, float ``[S, 1, H, W]``, each with the root mean square of its budget."""
        sums = (self.coefficients @ self.basis).view(-1, 1, *self.size)
        return sums * (self.budgets.view(-1, 1, 1, 1) / sums.square().mean((1, 2, 3), keepdim=True).sqrt())

    def loss(self, network: nn.Module, images: Tensor, first: Tensor | int) -> Tensor:
        """Mean cross-entropy of a network to the classes of the perturbations, which take turns.

        Args:
            network: Maps images in [0, 1] to logits; evaluated in eval mode and left unchanged.
            images: Float ``[N, C, H, W]`` in [0, 1], in random order.
            first: Which perturbation the first image gets.
        """
        slots = (first + torch.arange(len(images), device=images.device)) % len(self.targets)
        with frozen_in_eval(network):
            changed = (images + self.patterns().index_select(0, slots)).clamp(0.0, 1.0)
            logits = network(changed.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), self.targets[slots])

    @torch.no_grad()
    def candidates(self) -> list[list[Candidate]]:
        """The strongest sinusoid for each class, by budget from the smallest to the largest."""
        half = len(self.frequencies)
        power = self.coefficients[:, :half].square() + self.coefficients[:, half:].square()
        strongest = power.argmax(1).tolist()
        each = [
            Candidate(
                target=int(self.targets[slot]),
                sinusoid=self._sinusoid(slot, frequency),
                amplitude=sqrt(2.0) * float(self.budgets[slot]),
                cycles=tuple(self.frequencies[frequency].tolist()),
            )
            for slot, frequency in enumerate(strongest)
        ]
        classes = len(each) // len(BUDGETS)
        return [each[start : start + classes] for start in range(0, len(each), classes)]

    def _sinusoid(self, slot: int, frequency: int) -> Tensor:
        """The sinusoid of one frequency in a perturbation, at an amplitude of 1."""
        half = len(self.frequencies)
        sine, cosine = self.coefficients[slot, frequency], self.coefficients[slot, half + frequency]
        wave = sine * self.basis[frequency] + cosine * self.basis[half + frequency]
        return (wave / torch.hypot(sine, cosine)).view(1, *self.size).cpu()

    def _waves(self) -> Tensor:
        """The sine and then the cosine of each frequency, float ``[2F, H * W]``."""
        down, across = (torch.arange(side) / side for side in self.size)
        cycles = self.frequencies.float()
        turns = cycles[:, :1, None] * down[:, None] + cycles[:, 1:, None] * across
        angles = (2.0 * pi * turns).flatten(1)
        return torch.cat([angles.sin(), angles.cos()])


def leads(successes: Sequence[Proportion]) -> list[float]:
    """How far each class's sinusoid is ahead of the best one to another class, in log-odds; 0 if it is not.

    One whose success is below ``MIN_SUCCESS`` has no lead.

    Args:
        successes: Success of the sinusoid of each class, all of one amplitude.
    """
    values = [log_odds(each) for each in successes]
    ordered = sorted(values)[-2:]
    if len(ordered) < 2:
        return [0.0] * len(values)
    second, first = ordered
    return [
        max(0.0, value - (second if value == first else first)) if each.value >= MIN_SUCCESS else 0.0
        for value, each in zip(values, successes, strict=True)
    ]
