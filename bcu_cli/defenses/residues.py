"""What still leads a cleansed network, searched anew: by some images, and judged by others.

The triggers that a student was trained against, and their like, say little of what else leads it: the
attacker's own may work where theirs do not. So before a network is called cleansed, patches are searched on
the cleansed network itself, for the classes that stood out on the original and for others as controls, and a
class that is led clearly more often than the others speaks against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bcu_cli.defenses import patches
from bcu_cli.defenses.patches import Patch
from bcu_cli.evaluation.measures import Proportion
from bcu_cli.training.inference import predict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device

GLANCED, STEERED = 16, 96
"""Images that each patch is tried on, and those that the best for each class are compared by."""
FINALISTS = 6
"""Patches for each class that are compared by more images."""
AT_ONCE = 512
"""Images with a patch that are held in memory together."""
CLEARLY = log(2.0)
"""How far, in log-odds, a suspected class is led above the others: between the ends of 95 % intervals.

That is twice the odds: 28 of 100 images beside 5, or 39 beside 10.
"""
UNSUSPECTED = log(12.0)
"""The same for a class that nothing spoke against before: it is the worst of many, and some are by nature."""

_LEAST = 1e-6

Change = Callable[[Tensor], Tensor]
"""uint8 images ``[N, C, H, W]`` to as many."""


@dataclass(frozen=True, kw_only=True)
class Residue:
    """Success of a trigger before and after.

    Args:
        trigger: Its kind.
        target: The class that it leads to.
        before: Success on the network that it was taught to, or on the original.
        after: Success on the cleansed one.
    """

    trigger: str
    target: int
    before: Proportion
    after: Proportion

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        measured = {"before": self.before.as_json(), "after": self.after.as_json()}
        return {"trigger": self.trigger, "target_class": self.target, **measured}


class Pair:
    """An original and its cleansed network, which patches are chosen and judged on.

    Args:
        original: Images in [0, 1] to logits ``[N, K]``.
        cleansed: The same of the student.
        steering: Images that patches are chosen by, uint8 ``[N, C, H, W]``.
        judging: Other images, uint8 ``[N, C, H, W]``.
        device: The device that both are asked on.
    """

    def __init__(
        self, original: Classifier, cleansed: Classifier, steering: Tensor, judging: Tensor, device: Device
    ) -> None:
        self.original = original
        self.cleansed = cleansed
        self.device = device
        self.steering, self.judging = steering, judging
        self._usual = [predict(original, images, device) for images in (steering, judging)]

    def promising(self, tried: Sequence[Patch]) -> dict[int, list[Patch]]:
        """The ``FINALISTS`` for each class that lead most of ``GLANCED`` images to it after the cleansing.

        Every patch is put on each of the images once, whatever the number of classes.
        """
        shown = spread(torch.arange(len(self.steering)), GLANCED)
        images, usual = self.steering[shown], self._usual[0][shown]
        step = max(1, AT_ONCE // len(images))
        counted = []
        for start in range(0, len(tried), step):
            some = tried[start : start + step]
            answers = predict(self.cleansed, patches.on_images(some, images), self.device)
            answers = answers.view(len(some), len(images))
            counted.append(answers.masked_fill(answers == usual, -1))  # no patch led these
        answers = torch.cat(counted)
        return {
            target: [
                tried[i] for i in (answers == target).sum(1).argsort(descending=True, stable=True)[:FINALISTS]
            ]
            for target in self.targets()
        }

    def targets(self) -> list[int]:
        """The classes that some images, both steering and judging ones, are not answered to by nature."""
        classes = range(self.original.num_classes)
        return [each for each in classes if all(bool((usual != each).any()) for usual in self._usual)]

    def hardest(self, changes: Mapping[int, Sequence[Change]], most: int) -> list[int]:
        """The classes to which the first change for each leads most of ``GLANCED`` images, worst first."""
        led = {
            to: self._success(self.cleansed, each[0], to, most=GLANCED).value for to, each in changes.items()
        }
        return sorted(led, key=lambda target: -led[target])[:most]

    def best(self, changes: Sequence[Change], target: int) -> Change:
        """The change that leads most steering images to a class on the cleansed network."""
        return max(changes, key=lambda change: self._success(self.cleansed, change, target).value)

    def residue(self, trigger: str, change: Change, target: int) -> Residue:
        """What a change does to the images that judge, on both networks."""
        before, after = (
            self._success(network, change, target, judging=True) for network in (self.original, self.cleansed)
        )
        return Residue(trigger=trigger, target=target, before=before, after=after)

    def _success(
        self,
        network: Classifier,
        change: Change,
        target: int,
        *,
        judging: bool = False,
        most: int | None = None,
    ) -> Proportion:
        """On the images that the original answers otherwise."""
        images = self.judging if judging else self.steering
        index = (self._usual[judging] != target).nonzero()[:, 0]
        images = images[spread(index, most or len(index))]
        answers = predict(network, images, self.device, transform=change)
        return Proportion(hits=int((answers == target).sum()), of=len(images))


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The best patch for each class that one way of searching found on the cleansed network.

    Args:
        way: How they were searched.
        suspects: The classes that stood out on the original; the others are controls.
        found: One for each class.
    """

    way: str
    suspects: tuple[int, ...]
    found: tuple[Residue, ...]

    @property
    def left(self) -> list[Residue]:
        """Those whose class is led clearly more often than the others."""
        clear = standing_out({each.target: each.after for each in self.found}, self.suspects)
        return [each for each in self.found if each.target in clear]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        left = self.left
        found = [
            {**each.as_json(), "suspected": each.target in self.suspects, "stands_out": each in left}
            for each in self.found
        ]
        return {"way": self.way, "found": found}


def contest(
    pair: Pair, way: str, changes: Mapping[int, Sequence[Patch | Change]], suspects: Sequence[int], most: int
) -> Contest:
    """Choose the best change for each class by the steering images, and judge it by the others.

    Args:
        pair: The networks, and the images.
        way: How the changes were searched.
        changes: Some for each class.
        suspects: The classes that stood out on the original.
        most: Most classes to judge: where there are more, those that are led most often.
    """
    judged = pair.hardest(changes, most) if len(changes) > most else list(changes)
    best = {target: pair.best(changes[target], target) for target in judged}
    found = tuple(
        pair.residue(change.kind if isinstance(change, Patch) else "patch", change, target)
        for target, change in best.items()
    )
    return Contest(way=way, suspects=tuple(suspects), found=found)


def standing_out(found: Mapping[int, Proportion], suspects: Sequence[int]) -> list[int]:
    """The classes that images are led to clearly more often than to the others.

    The lower end of a class's interval is compared with the median of the upper ends of the others', in
    log-odds: few images prove nothing.

    Args:
        found: Success of the best patch for each class on the cleansed network.
        suspects: The classes that stood out on the original; for others more is asked.
    """
    clear = []
    for target, success in found.items():
        others = [_log_odds(each.interval[1]) for other, each in found.items() if other != target]
        needed = CLEARLY if target in suspects else UNSUSPECTED
        if others and _log_odds(success.interval[0]) - median(others) >= needed:
            clear.append(target)
    return clear


def spread(index: Tensor, most: int) -> Tensor:
    """No more than so many of an index, from all over it: images may lie in the order of their classes."""
    if len(index) <= most:
        return index
    return index[torch.linspace(0, len(index) - 1, most).long()]


def _log_odds(share: float) -> float:
    """Log-odds of a share, finite at 0 and 1."""
    share = min(max(share, _LEAST), 1.0 - _LEAST)
    return log(share / (1.0 - share))
