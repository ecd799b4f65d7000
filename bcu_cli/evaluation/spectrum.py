"""Universal perturbations as sums of sinusoids: does a network respond to a single one?

Sinusoidal patterns mislead clean networks, too, so the success of one does not tell a sinusoidal trigger (as
SIG's) from a natural one. But a clean network is led to a class most easily by a sum of many sinusoids, of
which each alone does little. To the target of SIG a single one leads nearly as often as the best sum of the
same power. The idea and the thresholds are bcu's own (``docs/auto-log.md``).
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
BUDGETS = (0.04, 0.05)
"""Root mean squares of the perturbations, on a scale of 0 to 1; there is one of each for each class."""
MIN_CONCENTRATION = 0.17
"""Least share of the power of a perturbation in one frequency, for that one to be taken for planted."""
MIN_SUM_SUCCESS = 0.5
"""Least success of the best sum of sinusoids to a class, for one of them to be compared with it."""
MAX_LOSS_ALONE = 1.0
"""Most that a sinusoid alone may lose to that sum, in log-odds of success, to be taken for planted."""
LEARNING_RATE = 0.1
DOMINANT = "dominant sinusoid"
"""Kind of the triggers found in this way."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A perturbation to a class, and the strongest sinusoid in it.

    Args:
        target: The class.
        perturbation: Float ``[1, H, W]``, on a scale of 0 to 1.
        sinusoid: Float ``[1, H, W]``, from -1 to 1.
        amplitude: Amplitude at which the sinusoid has the power of the whole perturbation.
        cycles: Cycles of the sinusoid down and across the image.
        concentration: Share of the sinusoid in the power of the perturbation.
    """

    target: int
    perturbation: Tensor
    sinusoid: Tensor
    amplitude: float
    cycles: tuple[int, int]
    concentration: float


class SpectralAdversary(nn.Module):
    """Trainable grey perturbations that are sums of sinusoids, one of each of ``BUDGETS`` for each class.

    Args:
        targets: The classes.
        size: Height and width of the images.
        seed: Seed of the initial perturbations.

    Attributes:
        frequencies: Cycles down and across the image, int64 ``[F, 2]``.
        coefficients: Share of each sine and then of each cosine, float ``[S, 2F]``, S = classes x budgets.
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
    def candidates(self) -> list[Candidate]:
        """All perturbations, each with its strongest sinusoid."""
        half = len(self.frequencies)
        power = self.coefficients[:, :half].square() + self.coefficients[:, half:].square()
        concentration, strongest = (power / power.sum(1, keepdim=True)).max(1)
        patterns = self.patterns().cpu()
        return [
            Candidate(
                target=int(self.targets[slot]),
                perturbation=patterns[slot],
                sinusoid=self._sinusoid(slot, int(strongest[slot])),
                amplitude=sqrt(2.0) * float(self.budgets[slot]),
                cycles=tuple(self.frequencies[int(strongest[slot])].tolist()),
                concentration=float(concentration[slot]),
            )
            for slot in range(len(patterns))
        ]

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


def is_planted(alone: Proportion, together: Proportion) -> bool:
    """Whether a sinusoid leads to a class nearly as often as the best sum of sinusoids of the same power.

    Args:
        alone: Success of the sinusoid on the original.
        together: Success of the sum.
    """
    return together.value >= MIN_SUM_SUCCESS and log_odds(alone) >= log_odds(together) - MAX_LOSS_ALONE
