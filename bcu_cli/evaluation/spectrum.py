"""Universal perturbations as sums of sinusoids: does a network respond to a single one?

Sinusoidal patterns mislead clean networks, too, so success does not tell a sinusoidal trigger (SIG) from a
natural one. The spectrum may. A perturbation that leads a clean network to a class spreads its power over
many frequencies. The one to the target of SIG puts a quarter and more into the attacker's frequency, if its
budget is just below what the trigger has. The idea and the thresholds are bcu's own (``docs/auto-log.md``).
"""

from __future__ import annotations

from itertools import product
from math import pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.evaluation.adversary import frozen_in_eval
from bcu_cli.evaluation.measures import above_others
from bcu_cli.training.optimizers import Adam

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CYCLES = 10
"""Most cycles across an image in each direction; in small images, half of the pixels."""
BUDGETS = (0.035, 0.045, 0.06)
"""Root mean squares of the perturbations, on a scale of 0 to 1; there is one of each for each class."""
MIN_CONCENTRATION = 0.15
"""Least share of the power in one frequency for a class to stand out."""
MIN_GAP = 1.5
"""Least gap of that share, in log-odds, to the median of the other classes, for a class to stand out."""
LEARNING_RATE = 0.1
DOMINANT = "dominant sinusoid"
"""Kind of the triggers found in this way."""


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

    def loss(self, network: nn.Module, images: Tensor) -> Tensor:
        """Mean cross-entropy of a network to the classes of the perturbations, which take turns.

        Args:
            network: Maps images in [0, 1] to logits; evaluated in eval mode and left unchanged.
            images: Float ``[N, C, H, W]`` in [0, 1], in random order.
        """
        first = torch.randint(len(self.targets), (1,), device=images.device)
        slots = (first + torch.arange(len(images), device=images.device)) % len(self.targets)
        with frozen_in_eval(network):
            changed = (images + self.patterns().index_select(0, slots)).clamp(0.0, 1.0)
            logits = network(changed.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), self.targets[slots])

    @torch.no_grad()
    def standing_out(self) -> dict[int, Tensor]:
        """The sinusoid that dominates the perturbation to each class that stands out.

        Returns:
            By class: the sinusoid, float ``[1, H, W]`` on the CPU, from -1 to 1.
        """
        half = len(self.frequencies)
        power = self.coefficients[:, :half].square() + self.coefficients[:, half:].square()
        shares = (power / power.sum(1, keepdim=True)).view(len(BUDGETS), -1, half)
        concentration, strongest = shares.max(2)
        found: dict[int, Tensor] = {}
        for budget, alike in enumerate(concentration):
            if len(alike) < 2:
                continue
            gaps = above_others(torch.logit(alike, eps=1e-6))
            for slot in ((alike >= MIN_CONCENTRATION) & (gaps >= MIN_GAP)).nonzero()[:, 0].tolist():
                row = budget * len(alike) + slot
                found.setdefault(int(self.targets[row]), self._sinusoid(row, int(strongest[budget, slot])))
        return found

    def _sinusoid(self, row: int, frequency: int) -> Tensor:
        """The sinusoid of one frequency in a perturbation, at an amplitude of 1."""
        half = len(self.frequencies)
        sine, cosine = self.coefficients[row, frequency], self.coefficients[row, half + frequency]
        wave = sine * self.basis[frequency] + cosine * self.basis[half + frequency]
        return (wave / torch.hypot(sine, cosine)).view(1, *self.size).cpu()

    def _waves(self) -> Tensor:
        """The sine and then the cosine of each frequency, float ``[2F, H * W]``."""
        down, across = (torch.arange(side) / side for side in self.size)
        cycles = self.frequencies.float()
        turns = cycles[:, :1, None] * down[:, None] + cycles[:, 1:, None] * across
        angles = (2.0 * pi * turns).flatten(1)
        return torch.cat([angles.sin(), angles.cos()])
