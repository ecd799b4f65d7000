"""Mixes of the weights of an original and of the network that was cleansed from it.

A network that is trained from the weights of another can be mixed with it, weight by weight: on the way from
one to the other both of them predict well (WiSE-FT, Wortsman et al., CVPR 2022). The way back to the original
gives accuracy back, and at last the backdoor as well. Networks with re-initialised weights cannot be mixed.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from bcu_cli.defenses.adversarial.residual_search import Change, ModelPair

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of the cleansed network that are tried."""
UNGUIDED_SHARE = 0.5
"""The least share where no trigger stands out, which would tell how much is enough."""
MARGIN = 0.2
"""Added to the least share, since the attacker's own trigger works better than one found.

``docs/auto-log.md`` has a network on which it still worked on 13 % of the images where the found one did not.
"""
STEP = 0.2
"""How much more of the cleansed network the next mix holds, where the verdict on one is not good."""
MOST_LEFT = 0.1
"""Most success of a found trigger in the least share; a margin follows."""
TOLERANCE = 0.03
"""Most success of a trigger above that on the cleansed network, where it works on more than that there."""
MIN_UNMIXED_AGREEMENT = 0.96
"""Least agreement with the original at which nothing is mixed, since there is nothing to give back."""


class Mixture:
    """The weights of two networks of one architecture; the second one takes mixes of them.

    Args:
        original: The network before the cleansing, which does not change.
        cleansed: The cleansed one.
    """

    def __init__(self, original: nn.Module, cleansed: nn.Module) -> None:
        self._original = original.state_dict()
        self._network = cleansed
        self._cleansed = {name: value.clone() for name, value in cleansed.state_dict().items()}

    def take(self, share: float) -> None:
        """Give the second network a mix.

        Args:
            share: Share of the cleansed weights and running statistics, from 0 to 1. Counters and other
                values that are not floats are the cleansed network's.
        """
        mixed = {
            name: torch.lerp(self._original[name].to(value), value, share)
            if value.is_floating_point()
            else value
            for name, value in self._cleansed.items()
        }
        self._network.load_state_dict(mixed)

    def mildest(
        self, pair: ModelPair, triggers: Sequence[tuple[Change, int]], *, margin: float = MARGIN
    ) -> float:
        """The least of ``SHARES`` that removes the given triggers, and a margin more.

        It is 1 where none does, and where the cleansed network answers nearly as the original does.

        Args:
            pair: The two networks, and the images to compare the mixes on.
            triggers: Triggers and their target classes. A mix may leave each on ``MOST_LEFT`` of the images,
                or on hardly more than the cleansed network does. Without any the least share is
                ``UNGUIDED_SHARE``.
            margin: Added to the least share; from 1 on nothing is mixed.
        """
        if margin >= 1.0 or pair.agreement() >= MIN_UNMIXED_AGREEMENT:
            return 1.0
        if not triggers:
            return unguided(margin)

        def left(change: Change, target: int) -> float:
            return pair.success(pair.cleansed, change, target).value

        limits = [
            (change, target, max(MOST_LEFT, left(change, target) + TOLERANCE)) for change, target in triggers
        ]
        for share in SHARES:
            self.take(share)
            if all(left(change, target) <= limit for change, target, limit in limits):
                return _with(margin, share)
        return 1.0


def unguided(margin: float) -> float:
    """The share of the cleansed network where no trigger stands out, with a margin."""
    return _with(margin, UNGUIDED_SHARE)


def onward(share: float) -> list[float]:
    """A share of the cleansed network, and larger ones to try where that does not suffice, up to 1."""
    return [_with(step * STEP, share) for step in range(ceil(round((1.0 - share) / STEP, 6)) + 1)]


def _with(margin: float, share: float) -> float:
    return min(1.0, round(share + margin, 2))
