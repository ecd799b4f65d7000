"""The classes to search triggers for, where there are too many to search all.

Universal changes are trained to turn images away from their class, whatever class they end in. A backdoor is
an easy way to do that, so its target is among the classes that the images end in. Random classes are added,
to compare with. The cost does not depend on the number of classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from bcu_cli.evaluation.adversary import Adversary

if TYPE_CHECKING:
    from torch import nn

    from bcu_cli.evaluation.adversary import Limits

FEWEST_CLASSES = 4
"""Fewest classes of a network that can be judged: a trigger's class is compared with the others."""
LARGEST_SHARE = 0.9
"""Most images that may have one class: a trigger to it is tried on the images of the others."""
MOST_CLASSES = 64
"""Most classes to search triggers for; networks of no more classes are not screened."""
RANDOM_CLASSES = 24
"""Classes among these that are drawn at random."""
STARTS = 16
"""Changes of each kind that are trained from different initial values."""


class UntargetedAdversary(Adversary):
    """Universal changes that turn images away from the class that the network predicts without them.

    Args:
        shape: Shape of the images, (C, H, W).
        limits: Limits of the changes.
        seed: Seed of the initial changes.
        starts: Changes of each kind.
    """

    def __init__(
        self, shape: tuple[int, int, int], limits: Limits, *, seed: int, starts: int = STARTS
    ) -> None:
        super().__init__(range(starts), shape, limits, seed=seed)

    def _loss(self, network: nn.Module, images: Tensor, logits: Tensor, slots: Tensor) -> Tensor:  # noqa: ARG002 - no targets
        with torch.no_grad():
            predicted = network(images).argmax(1)
        return -F.cross_entropy(logits.float(), predicted, reduction="none").clamp(max=10.0).sum()


def candidates(rankings: Tensor, seed: int, *, most: int, controls: int) -> list[int]:
    """The classes to search triggers for, in ascending order.

    The rankings take turns, since one of them often has many classes in front without a backdoor.

    Args:
        rankings: Values by which classes are ranked, largest first, float ``[R, K]``: for each kind of
            universal change the share of images that it sends to each class, and other values.
        seed: Seed of the classes that are drawn at random.
        most: Number of classes to choose, at most K.
        controls: How many of them are drawn at random.
    """
    orders = rankings.argsort(dim=1, descending=True, stable=True)
    in_turns = dict.fromkeys(orders.t().flatten().tolist())
    chosen = dict.fromkeys(list(in_turns)[: most - controls])
    shuffled = torch.randperm(rankings.shape[1], generator=torch.Generator().manual_seed(seed))
    others = [each for each in shuffled.tolist() if each not in chosen]
    return sorted([*chosen, *others[: most - len(chosen)]])
