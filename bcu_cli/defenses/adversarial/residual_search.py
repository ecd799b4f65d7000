"""Verification by triggers that are searched on the cleansed network itself.

The triggers that a student was trained against, and similar ones, say little about other triggers: the
attacker's may still work where they do not. So before a network is called cleansed, patches, universal
perturbations and warps are searched on it, for the suspected classes and for control classes. They are chosen
on some images and judged on others. A class that is reached clearly more often than the others is an outlier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bcu_cli.defenses.adversarial import patches
from bcu_cli.defenses.adversarial.patches import SCREENING_IMAGES, Patch
from bcu_cli.evaluation.measures import Proportion
from bcu_cli.training.inference import in_batches, predict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device

FINALISTS = 6
"""Patches of each class that are compared on all selection images."""
CLIMBING_STEPS, BEAM, CLIMBED = 3, 2, 3
"""Steps from listed patches to others near them, patches that a step starts from, and others found."""
MIN_SUSPECT_GAP = log(2.0)
"""Least gap in log-odds, between the ends of 95 % intervals, for a suspected class to be an outlier.

The odds are then doubled: 28 of 100 images against 5, or 39 against 10.
"""
MIN_CONTROL_GAP = log(12.0)
"""Least gap in log-odds for another class; larger, since the highest of many is high by chance."""
MIN_ORIGINAL_SUCCESS = 0.5
"""Least success of an outlier on the original, at the lower end of its 95 % interval."""
_LEAST = 1e-6

Change = Callable[[Tensor], Tensor]
"""A function that changes images, uint8 ``[N, C, H, W]``."""


@dataclass(frozen=True, kw_only=True)
class TriggerSuccess:
    """Success of a trigger before and after the cleansing.

    Args:
        trigger: Kind of the trigger.
        target: Target class.
        before: Success on the original, or on the copy in which it was planted.
        after: Success on the cleansed network.
        change: Puts the trigger on images.
    """

    trigger: str
    target: int
    before: Proportion
    after: Proportion
    change: Change = field(compare=False, repr=False)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        measured = {"before": self.before.as_json(), "after": self.after.as_json()}
        return {"trigger": self.trigger, "target_class": self.target, **measured}


@dataclass(frozen=True, kw_only=True)
class FoundTrigger:
    """A trigger that a search found, to be drawn.

    Args:
        found_on: The network that was searched.
        success: The trigger, and its success on both networks.
        stands_out: Whether it works far more often than those for the other classes.
    """

    found_on: Literal["original", "result"]
    success: TriggerSuccess
    stands_out: bool

    def as_json(self) -> dict[str, Any]:
        """Plain values for a page."""
        return {**self.success.as_json(), "found_on": self.found_on, "stands_out": self.stands_out}


class ModelPair:
    """An original and its cleansed network, on which changes are selected and tested.

    Args:
        original: Maps images in [0, 1] to logits ``[N, K]``.
        cleansed: The student, which does likewise.
        selection: Images that changes are selected on, uint8 ``[N, C, H, W]``.
        test: Other images, on which the selected changes are measured, uint8 ``[N, C, H, W]``.
        device: The device that both networks run on.
    """

    def __init__(
        self, original: Classifier, cleansed: Classifier, selection: Tensor, test: Tensor, device: Device
    ) -> None:
        self.original = original
        self.cleansed = cleansed
        self.device = device
        self.selection, self.test = selection, test
        self._original_answers = [predict(original, images, device) for images in (selection, test)]

    def promising(self, candidates: Sequence[Patch]) -> dict[int, list[Patch]]:
        """The ``FINALISTS`` of each class with the highest success on ``SCREENING_IMAGES`` images.

        Every patch is put on each of the images once, whatever the number of classes. Success counts on both
        networks: the original reacts nearly always to a patch that a cleansed network still reacts to.
        """
        index = spread(torch.arange(len(self.selection)), SCREENING_IMAGES)
        images, without = self.selection[index], self._original_answers[0][index]
        networks = [self.original, self.cleansed]
        answers = patches.answers(candidates, images, networks, without, self.device)
        ranked = {
            target: (answers == target).sum(1).argsort(descending=True, stable=True)[:FINALISTS]
            for target in self.targets()
        }
        return {target: [candidates[i] for i in best] for target, best in ranked.items()}

    def climb(self, candidates: Sequence[Patch], target: int) -> list[Patch]:
        """The given patches, and others near them that the cleansed network takes more surely for a class.

        An attacker's patch may differ from every listed one in a few cells. The original reacts to both,
        but the cleansed network may react to the attacker's alone. Each step looks at the neighbours of the
        ``BEAM`` best patches so far, by the mean probability of the class on ``SCREENING_IMAGES`` images.

        Args:
            candidates: Patches to begin with.
            target: The class.

        Returns:
            The candidates, and the ``CLIMBED`` best others.
        """
        self.cleansed.to(self.device.torch).eval()
        index = spread((self._original_answers[0] != target).nonzero()[:, 0], SCREENING_IMAGES)
        images = self.selection[index]
        shape = (images.shape[1], images.shape[2], images.shape[3])

        def probabilities(of: Sequence[Patch]) -> list[float]:
            shown = patches.on_images(of, images)
            found = in_batches(
                lambda batch: self.cleansed(batch).softmax(1)[:, target],
                shown,
                self.device,
                network=self.cleansed,
            )
            return found.view(len(of), len(images)).mean(1).tolist()

        given = {each.key: each for each in candidates}
        seen = dict(given)
        scores = dict(zip(seen, probabilities(list(seen.values())), strict=True))
        for _ in range(CLIMBING_STEPS):
            best = sorted(scores, key=lambda key: -scores[key])[:BEAM]
            near = {each.key: each for key in best for each in seen[key].neighbours(shape)}
            near = {key: each for key, each in near.items() if key not in seen}
            if near:
                scores |= dict(zip(near, probabilities(list(near.values())), strict=True))
                seen |= near
        found = [key for key in sorted(scores, key=lambda key: -scores[key]) if key not in given]
        return [*candidates, *(seen[key] for key in found[:CLIMBED])]

    def targets(self) -> list[int]:
        """The classes that can be targets: some images of both sets are predicted as another class."""
        classes = range(self.original.num_classes)
        return [c for c in classes if all(bool((answers != c).any()) for answers in self._original_answers)]

    def most_affected(self, changes: Mapping[int, Sequence[Change]], most: int) -> list[int]:
        """The classes whose first change succeeds most often on ``SCREENING_IMAGES`` images, worst first.

        What succeeds on the cleansed network counts, then what does on the original.
        """

        def success(target: int) -> list[float]:
            networks, change = (self.cleansed, self.original), changes[target][0]
            return [self.success(n, change, target, most=SCREENING_IMAGES).value for n in networks]

        return sorted(changes, key=success, reverse=True)[:most]

    def agreement(self) -> float:
        """Share of the selection images on which both networks have the same prediction."""
        answers = predict(self.cleansed, self.selection, self.device)
        return float((answers == self._original_answers[0]).float().mean())

    def best(self, changes: Sequence[Change], target: int) -> Change:
        """The change that succeeds most often on the cleansed network, on the selection images.

        One that leads most images on the original comes before others: no other can be an outlier.
        """

        def rank(change: Change) -> tuple[bool, float, float]:
            before, after = (
                self.success(network, change, target).value for network in (self.original, self.cleansed)
            )
            return before >= MIN_ORIGINAL_SUCCESS, after, before

        return max(changes, key=rank)

    def trigger_success(self, trigger: str, change: Change, target: int) -> TriggerSuccess:
        """Success of a change on the test images, on both networks."""
        before, after = (
            self.success(network, change, target, on_test=True) for network in (self.original, self.cleansed)
        )
        return TriggerSuccess(trigger=trigger, target=target, before=before, after=after, change=change)

    def success(
        self,
        network: Classifier,
        change: Change,
        target: int,
        *,
        on_test: bool = False,
        most: int | None = None,
    ) -> Proportion:
        """Success of a change on the images that the original predicts as another class."""
        images = self.test if on_test else self.selection
        answers = self._original_answers[on_test]
        return success_on(network, images, answers, change, target, self.device, most=most)


@dataclass(frozen=True, kw_only=True)
class ResidualSearch:
    """The best change of each class that one search found on the cleansed network.

    Args:
        search: Name of the search.
        suspects: The suspected classes; the others are controls.
        found: The best change of each class.
    """

    search: str
    suspects: tuple[int, ...]
    found: tuple[TriggerSuccess, ...]

    @property
    def outliers(self) -> list[TriggerSuccess]:
        """The changes whose success is clearly higher than those of the other classes."""
        return outliers_among(self.found, self.suspects)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        outliers = self.outliers
        found = [
            {**each.as_json(), "suspected": each.target in self.suspects, "stands_out": each in outliers}
            for each in self.found
        ]
        return {"search": self.search, "found": found}


def compare_changes(
    pair: ModelPair,
    search: str,
    kind: str,
    changes: Mapping[int, Sequence[Patch | Change]],
    suspects: Sequence[int],
    most: int,
) -> ResidualSearch:
    """Select the best change of each class on the selection images, and measure it on the test images.

    Args:
        pair: The networks and the images.
        search: Name of the search that found the changes.
        kind: Kind of the changes, except for patches that name their own.
        changes: Candidates for each class.
        suspects: The suspected classes.
        most: Most classes to measure; where there are more, those with the highest success.
    """
    judged = pair.most_affected(changes, most) if len(changes) > most else list(changes)
    best = {target: pair.best(changes[target], target) for target in judged}
    found = tuple(
        pair.trigger_success(change.kind if isinstance(change, Patch) else kind, change, target)
        for target, change in best.items()
    )
    return ResidualSearch(search=search, suspects=tuple(suspects), found=found)


def outliers_among(found: Sequence[TriggerSuccess], suspects: Sequence[int]) -> list[TriggerSuccess]:
    """The changes that succeed clearly more often than those of the other classes.

    The lower end of a class's interval is compared with the median of the upper ends of the other classes, in
    log-odds. So few images prove nothing. Suspected classes are no others, since each may have a backdoor,
    unless all are suspected. A change must also succeed on most images of the original: large ones fool any
    network for some classes, and say nothing about its backdoor.

    Args:
        found: The best change of each class.
        suspects: The suspected classes; other classes need a larger gap.
    """
    clear = []
    controls = [each for each in found if each.target not in suspects] or found
    for each in found:
        others = [_log_odds(other.after.interval[1]) for other in controls if other is not each]
        needed = MIN_SUSPECT_GAP if each.target in suspects else MIN_CONTROL_GAP
        ahead = bool(others) and _log_odds(each.after.interval[0]) - median(others) >= needed
        if ahead and each.before.interval[0] >= MIN_ORIGINAL_SUCCESS:
            clear.append(each)
    return clear


def success_on(
    network: Classifier,
    images: Tensor,
    answers: Tensor,
    change: Change,
    target: int,
    device: Device,
    *,
    most: int | None = None,
) -> Proportion:
    """Success of a change: the share of the images of other classes that are predicted as the target.

    Args:
        network: The network to measure it on.
        images: Images, uint8 ``[N, C, H, W]``.
        answers: Their classes without the change, int64 ``[N]``.
        change: The change.
        target: The target class.
        device: The device.
        most: Most images to measure on, evenly spaced; None is all.
    """
    index = (answers != target).nonzero()[:, 0]
    others = images[spread(index, most or len(index))]
    predicted = predict(network, others, device, transform=change)
    return Proportion(hits=int((predicted == target).sum()), of=len(others))


def spread(index: Tensor, most: int) -> Tensor:
    """At most ``most`` entries of an index, evenly spaced, since images may be ordered by class."""
    if len(index) <= most:
        return index
    return index[torch.linspace(0, len(index) - 1, most).long()]


def _log_odds(share: float) -> float:
    """Log-odds of a share, finite at 0 and 1."""
    share = min(max(share, _LEAST), 1.0 - _LEAST)
    return log(share / (1.0 - share))
