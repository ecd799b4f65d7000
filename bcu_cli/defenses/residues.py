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

GLANCED, STEERED = 6, 96
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
LED_BEFORE = 0.5
"""Share of images that a residue leads at least on the original, by the lower end of its interval."""
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
        """The ``FINALISTS`` for each class that lead most of ``GLANCED`` images to it on both networks.

        Every patch is put on each of the images once, whatever the number of classes. The original counts,
        too: it answers nearly always to what a cleansed network answers to at all, so few images tell.
        """
        shown = spread(torch.arange(len(self.steering)), GLANCED)
        images, usual = self.steering[shown], self._usual[0][shown]
        step = max(1, AT_ONCE // len(images))
        answers = torch.cat(
            [self._answers(tried[at : at + step], images, usual) for at in range(0, len(tried), step)]
        )
        promising = {}
        for target in self.targets():
            led = (answers == target).sum(1)
            promising[target] = [tried[i] for i in led.argsort(descending=True, stable=True)[:FINALISTS]]
        return promising

    def _answers(self, tried: Sequence[Patch], images: Tensor, usual: Tensor) -> Tensor:
        """Answers of both networks to each patch, -1 where it changed none, int64 ``[patches, 2 · N]``."""
        changed = patches.on_images(tried, images)
        both = [
            predict(network, changed, self.device).view(len(tried), len(images))
            for network in (self.original, self.cleansed)
        ]
        return torch.cat([answers.masked_fill(answers == usual, -1) for answers in both], 1)

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
        """The change that leads most steering images to a class, on both networks together."""
        networks = (self.original, self.cleansed)
        return max(changes, key=lambda each: sum(self._success(n, each, target).value for n in networks))

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
        return standing_out(self.found, self.suspects)

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


def standing_out(found: Sequence[Residue], suspects: Sequence[int]) -> list[Residue]:
    """Those whose class is led clearly more often than the others on the cleansed network.

    The lower end of a class's interval is compared with the median of the upper ends of the others', in
    log-odds: few images prove nothing. What does not lead most images on the original, too, is no residue of
    its backdoor: large patches lead any network to some classes.

    Args:
        found: The best patch for each class.
        suspects: The classes that stood out on the original; for others more is asked.
    """
    clear = []
    for each in found:
        others = [_log_odds(other.after.interval[1]) for other in found if other is not each]
        needed = CLEARLY if each.target in suspects else UNSUSPECTED
        ahead = bool(others) and _log_odds(each.after.interval[0]) - median(others) >= needed
        if ahead and each.before.interval[0] >= LED_BEFORE:
            clear.append(each)
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
