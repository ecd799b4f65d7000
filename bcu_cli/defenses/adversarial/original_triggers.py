"""The triggers that are searched on an original network, and by which a cleansing of it is judged.

A clean network is misled by many changes, too. So only those count that succeed far more often than those for
other classes. Where most classes are reached none can; then the limits are halved, and the search is repeated
(Neural Cleanse compares the smallest triggers for the same reason; Wang et al., S&P 2019).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.defenses.adversarial import sinusoids
from bcu_cli.defenses.adversarial.evidence import (
    MIN_TRIGGER_SUCCESS,
    clear_classes,
    saturated,
    standing_out,
)
from bcu_cli.defenses.adversarial.residual_search import TriggerSuccess
from bcu_cli.defenses.adversarial.searching import LIMITS, on_bytes
from bcu_cli.evaluation.adversary import UNIVERSAL
from bcu_cli.evaluation.spectrum import DOMINANT, MIN_LEAD, SpectralAdversary, leads
from bcu_cli.images.augmentation import NO_AUGMENTATION
from bcu_cli.training.loop import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from bcu_cli.defenses.adversarial.evidence import Found
    from bcu_cli.defenses.adversarial.residual_search import Change
    from bcu_cli.defenses.adversarial.searching import Searcher
    from bcu_cli.evaluation.adversary import Adversary
    from bcu_cli.evaluation.measures import Proportion
    from bcu_cli.models import Classifier

MOST_HALVINGS = 2
"""Most halvings of the limits while triggers are searched that tell the classes apart."""


class OriginalTriggers:
    """What a search with another seed than that of the cleansing's adversary finds on the original.

    Args:
        searcher: Searches the original.

    Attributes:
        adversaries: The adversary that holds the triggers of each universal kind.
        successes: Success on the original by kind and target class.
        spectral: The sinusoid far ahead of others to each class that has one, and its success.
        sinusoids: Sinusoidal patterns that succeed on the original, their classes and successes.
    """

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.adversaries: dict[str, Adversary] = {}
        self.successes: dict[tuple[str, int], Proportion] = {}
        self.spectral: dict[int, tuple[Change, Proportion]] = {}
        self.sinusoids: list[tuple[Change, int, Proportion]] = []

    def search(self) -> Iterator[Stage]:
        """Search patches, universal perturbations and warps, then sinusoids."""
        yield from self.search_universal()
        if not self.outstanding and self.searcher.effort.spectral_steps:
            yield from self.search_spectral()
        tried = self.searcher.try_sinusoids(self.searcher.original, self.searcher.seed + 1)
        self.sinusoids = [each for each in tried if each[2].value >= MIN_TRIGGER_SUCCESS]

    def search_universal(self) -> Iterator[Stage]:
        """Search within limits that tell the classes apart.

        Where a kind of trigger reaches most classes and none stands out, its limit is halved.
        """
        limits, searcher = LIMITS, self.searcher
        for halving in range(MOST_HALVINGS + 1):
            adversary = searcher.starting_adversary(searcher.original, limits, searcher.seed + 1)
            title = "looking for smaller triggers" if halving else "looking for triggers"
            yield searcher.stage(adversary, searcher.original, title)
            missing = [kind for kind in UNIVERSAL if kind not in self.adversaries]
            for kind in missing:
                successes = searcher.successes(adversary, searcher.original, [kind])
                if halving == MOST_HALVINGS or not saturated(_found(successes)):
                    self.adversaries[kind] = adversary
                    self.successes |= successes
            if len(self.adversaries) == len(UNIVERSAL):
                return
            limits = limits.scaled(0.5)

    def search_spectral(self) -> Iterator[Stage]:
        """Search a sinusoidal trigger (``evaluation/spectrum.py``), where no other trigger stands out.

        Of each class the strongest sinusoid in a perturbation is tried alone, at its weakest amplitude first.
        """
        searcher = self.searcher
        classes = [each for each in searcher.classes if bool((searcher.answers != each).any())]
        adversary = SpectralAdversary(classes, searcher.shape[1:], seed=searcher.seed)
        adversary.to(searcher.device.torch)

        def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - needs no labels
            first = torch.randint(len(adversary.targets), (1,), device=views.device)
            return adversary.loss(searcher.original, views, first)

        how: dict[str, Any] = {"schedule": "cosine", "augmentation": NO_AUGMENTATION}
        how |= {"steps": searcher.effort.spectral_steps, "optimizer": adversary.optimizer()}
        training = searcher.training(adversary, objective, **how)
        yield Stage(title="looking for a sinusoidal trigger", training=training)
        for alike in adversary.candidates():
            changes = [sinusoids.add_pattern(each.sinusoid, each.amplitude) for each in alike]
            tried = list(zip(alike, changes, strict=True))
            successes = [searcher.success(searcher.original, change, each.target) for each, change in tried]
            for (each, change), success, lead in zip(tried, successes, leads(successes), strict=True):
                if lead >= MIN_LEAD:
                    self.spectral.setdefault(each.target, (change, success))

    @property
    def outstanding(self) -> list[tuple[str, int]]:
        """Kind and target class of each trigger that stands out."""
        spectral = [(DOMINANT, target) for target in self.spectral]
        return [*standing_out(_found(self.successes)), *spectral]

    @property
    def clear(self) -> set[int]:
        """The target classes that hardly any trigger stands out for by nature."""
        return clear_classes(_found(self.successes)) | set(self.spectral)

    def change(self, kind: str, target: int) -> Change:
        """One of the triggers."""
        if kind == DOMINANT:
            return self.spectral[target][0]
        adversary = self.adversaries[kind]
        return on_bytes(adversary, adversary.targets.tolist().index(target), UNIVERSAL.index(kind))

    def found_on(self, student: Classifier) -> list[TriggerSuccess]:
        """The triggers of all universal kinds, with their success on a student."""
        after: dict[tuple[str, int], Proportion] = {}
        for kind, adversary in self.adversaries.items():
            after |= self.searcher.successes(adversary, student, [kind])
        return [
            TriggerSuccess(
                trigger=kind,
                target=target,
                before=share,
                after=after[kind, target],
                change=self.change(kind, target),
            )
            for (kind, target), share in self.successes.items()
        ]

    def spectral_on(self, student: Classifier) -> list[TriggerSuccess]:
        """The sinusoids that are far ahead of others, with their success on a student."""
        return [
            TriggerSuccess(
                trigger=DOMINANT,
                target=target,
                before=share,
                after=self.searcher.success(student, change, target),
                change=change,
            )
            for target, (change, share) in self.spectral.items()
        ]

    def sinusoids_on(self, student: Classifier) -> list[TriggerSuccess]:
        """The sinusoidal patterns that succeed on the original, with their success on a student."""
        return [
            TriggerSuccess(
                trigger="sinusoid",
                target=target,
                before=share,
                after=self.searcher.success_by_class(student, pattern)[target],
                change=pattern,
            )
            for pattern, target, share in self.sinusoids
        ]


def _found(successes: Mapping[tuple[str, int], Proportion]) -> list[Found]:
    """Kind, target class and success of each trigger."""
    return [(kind, target, success) for (kind, target), success in successes.items()]
