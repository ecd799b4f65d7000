"""The search of a cleansed network that precedes a good verdict (``residual_search.py`` says why)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bcu_cli.defenses.adversarial import patches
from bcu_cli.defenses.adversarial.residual_search import ModelPair, compare_changes
from bcu_cli.defenses.adversarial.searching import LIMITS, on_bytes
from bcu_cli.evaluation.adversary import UNIVERSAL, Limits
from bcu_cli.evaluation.measures import log_odds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bcu_cli.defenses.adversarial.evidence import Evidence
    from bcu_cli.defenses.adversarial.residual_search import Change, ResidualSearch, TriggerSuccess
    from bcu_cli.defenses.adversarial.searching import Searcher
    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Stage

STARTS_PER_CLASS = 3
"""Changes of each kind that the search starts from for each class, where there are suspected classes."""
MOST_SUSPECTS, MOST_CONTROLS = 3, 6
"""Most suspected classes to search, and most control classes to compare them with."""
VERIFICATION_LIMITS = Limits(patch=LIMITS.patch / 2, perturbation=LIMITS.perturbation, warp=LIMITS.warp)
"""Limits of the search: larger patches fool many networks for any class."""


class Verification:
    """Searches a cleansed network for triggers to the suspected classes and to control classes.

    Args:
        searcher: Searches networks.
        student: The cleansed network.
        evidence: The evidence so far: its outstanding triggers suspect their classes.
    """

    def __init__(self, searcher: Searcher, student: Classifier, evidence: Evidence) -> None:
        self._searcher = searcher
        self._student = student
        self._suspects = _suspects(evidence)
        self._outstanding = {each.target for each in evidence.outstanding}
        selection = searcher.selected(searcher.effort.selection_images)
        self._pair = ModelPair(searcher.original, student, selection, searcher.held_out, searcher.device)
        self._candidates: list[tuple[str, str, Mapping[int, Sequence[Change]]]] = []

    def search(self) -> Iterator[Stage]:
        """Search the student: among listed patches and patches near them, and by gradients."""
        searcher, pair, suspects = self._searcher, self._pair, self._suspects
        seed, effort = searcher.seed + 2, searcher.effort
        listed = pair.promising(patches.draw(searcher.shape, seed)[:: effort.patch_interval])
        if suspects:
            listed = {target: listed[target] for target in self._with_controls(list(listed))}
        compared = list(listed) if suspects else pair.most_affected(listed, MOST_SUSPECTS + MOST_CONTROLS)
        climbed = {target: pair.climb(listed[target], target) for target in compared}
        targets = (
            [target for target in listed for _ in range(STARTS_PER_CLASS)] if suspects else searcher.classes
        )
        adversary = searcher.adversary(VERIFICATION_LIMITS, seed, targets)
        how = {"steps": effort.verification_steps, "batch_size": effort.batch_size}
        yield searcher.stage(adversary, self._student, "looking for remaining triggers", **how)
        self._candidates = [("enumeration", "patch", climbed)]
        for position, kind in enumerate(UNIVERSAL):
            searched: dict[int, list[Change]] = {}
            for slot, target in enumerate(adversary.targets.tolist()):
                if target in listed:
                    searched.setdefault(target, []).append(on_bytes(adversary, slot, position))
            self._candidates.append(("gradient", kind, searched))

    def judged(self) -> list[ResidualSearch]:
        """Compare on the student as it is now the changes for suspected classes with those for others."""
        most = MOST_SUSPECTS + MOST_CONTROLS
        return [
            compare_changes(self._pair, search, kind, candidates, self._suspects, most)
            for search, kind, candidates in self._candidates
        ]

    def _with_controls(self, classes: list[int]) -> list[int]:
        """The suspected classes, and control classes drawn at random, for which nothing stands out."""
        generator = torch.Generator().manual_seed(self._searcher.seed)
        order = torch.randperm(len(classes), generator=generator).tolist()
        others = [classes[i] for i in order if classes[i] not in self._outstanding]
        return [each for each in self._suspects if each in classes] + others[:MOST_CONTROLS]


def _suspects(evidence: Evidence) -> list[int]:
    """The target classes of the outstanding triggers, up to ``MOST_SUSPECTS`` of them.

    Those that are clear come first, since other triggers may be natural; then those of the most successful
    triggers.
    """
    clear = evidence.clear

    def rank(each: TriggerSuccess) -> tuple[bool, float]:
        return each.target not in clear, -log_odds(each.before)

    ranked = sorted(evidence.outstanding, key=rank)
    return list(dict.fromkeys(each.target for each in ranked))[:MOST_SUSPECTS]
