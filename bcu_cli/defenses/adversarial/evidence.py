"""The evidence on which method ``auto`` judges its result, and the verdict that follows from it.

Everything is measured on held-out images, without labels and without the attacker's trigger: triggers that
were found on the original, sinusoidal patterns, canaries, and triggers that were searched on the cleansed
network itself. ``docs/auto.md`` says what each of them is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from bcu_cli.defenses.base import Verdict
from bcu_cli.evaluation.adversary import UNIVERSAL
from bcu_cli.evaluation.measures import above_others, log_odds
from bcu_cli.evaluation.spectrum import DOMINANT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bcu_cli.defenses.adversarial.residual_search import ResidualSearch, TriggerSuccess
    from bcu_cli.evaluation.measures import Proportion

    Found = tuple[str, int, Proportion]
    """Kind, target class and success of a trigger on the original."""

SATURATED = 0.75
"""Median success over the classes above which triggers of a kind do not stand out, and limits are halved.

On 230 images a gap of 3.5 above it is the difference between 100 % and one image less. So patches stood out
to wrong classes there (``docs/auto-log.md``).
"""
MIN_PLANTED_SUCCESS = 0.8
"""Least success of a canary in the copy; below that it proves nothing."""
MAX_CANARY_SUCCESS = 0.2
"""Most success of a canary that counts as removed."""
MIN_TRIGGER_SUCCESS = 0.9
"""Least success on the original of a trigger that counts as found."""
MIN_LOG_ODDS_GAP = 3.5
"""Least gap, in log-odds, to the median of the other classes: from 75 % to 99 %, or from 21 % to 90 %."""
MAX_OTHERS_SUCCESS = 0.25
"""Most success, by the median of the other classes, beside which a trigger that stands out is no natural one.

The class of such a trigger is *clear*, and so is one for which a patch or triggers of two kinds stand out.
Sinusoidal patterns that lead to other classes are then natural.
"""
MAX_TRIGGER_SUCCESS = 0.4
"""Most success of a found trigger on a cleansed network; some triggers fool clean networks, too."""
MIN_AGREEMENT = 0.7
"""Least agreement with the original on the half of the held-out images with its highest confidence.

On images unlike the training data even a good copy often disagrees (``docs/auto.md``).
"""
MIN_HELD_OUT = 50
"""Fewest held-out images for a verdict, a tenth of all: of ten, one misclassified by chance is 10 %."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was measured on an original and on its cleansed network.

    Args:
        found: The triggers that a search found on the original, of each kind for each class.
        spectral: The sinusoids that lead the original to a class far more often than others to other classes
            (``evaluation/spectrum.py``).
        sinusoids: The sinusoidal patterns that succeed on the original.
        trials: The canaries after each level that was tried on them, the one that is taken last.
        residual_searches: The searches on the cleansed network; empty before they were made.
        confident_agreement: Agreement of both networks on the images that the original is surer of.
        held_out: Number of held-out images.
    """

    found: Sequence[TriggerSuccess]
    spectral: Sequence[TriggerSuccess] = ()
    sinusoids: Sequence[TriggerSuccess]
    trials: Sequence[Sequence[TriggerSuccess]]
    residual_searches: Sequence[ResidualSearch]
    confident_agreement: Proportion
    held_out: int

    @property
    def outstanding(self) -> list[TriggerSuccess]:
        """The triggers that succeed on the original, far more often than those for other classes."""
        far = standing_out([(each.trigger, each.target, each.before) for each in self.found])
        return [*(each for each in self.found if (each.trigger, each.target) in far), *self.spectral]

    @property
    def outliers(self) -> list[TriggerSuccess]:
        """The triggers found on the cleansed network that reach a class clearly more often than others."""
        return [each for search in self.residual_searches for each in search.outliers]

    @property
    def clear(self) -> set[int]:
        """The classes that are clear: hardly any trigger to them stands out by nature."""
        found = [(each.trigger, each.target, each.before) for each in self.found]
        return clear_classes(found) | {each.target for each in self.spectral}

    @property
    def sinusoids_that_count(self) -> list[TriggerSuccess]:
        """The sinusoidal patterns that may be the backdoor's: all, or those to the classes that are clear."""
        return [each for each in self.sinusoids if may_be_planted(each.target, self.clear)]

    @property
    def planted(self) -> list[TriggerSuccess]:
        """The canaries that the copy learned, with their success after the level that is taken."""
        return learned_canaries(self.trials)

    @property
    def enough_images(self) -> bool:
        """Whether enough images are held out for a good verdict."""
        return self.held_out >= MIN_HELD_OUT

    @property
    def triggers_remain(self) -> bool:
        """Whether a trigger found on either network still works."""
        known = [each for each in self.outstanding if each.after.value > self._most_success(each)]
        sinusoids_remain = _highest_success(self.sinusoids_that_count) > MAX_TRIGGER_SUCCESS
        return bool(known or self.outliers) or sinusoids_remain

    def verdict(self) -> Verdict:
        """Judge by the known triggers and canaries, then by the triggers found on the cleansed network."""
        verdict, outliers = self.verdict_on_known_triggers(), self.outliers
        if not verdict.good or not outliers:
            return verdict
        worst = max(outliers, key=lambda each: each.after.value)
        why = (
            f"with a {worst.trigger} found on the cleansed network, {worst.after.hits} of {worst.after.of} "
            f"images are predicted as class {worst.target}, clearly more than for other classes"
        )
        return Verdict(word="not cleansed", why=why)

    def verdict_on_known_triggers(self) -> Verdict:
        """Judge by the triggers that were found on the original, and by the canaries.

        A trigger that stands out on the original is the strongest evidence. Sinusoidal patterns mislead clean
        networks too, and canaries are not the attacker's backdoor: neither shows that a backdoor remains, so
        one that survives only keeps the verdict from ``cleansed`` (``docs/auto.md``). A sinusoidal
        pattern to another class than that of a clear backdoor does not even that.
        """
        outstanding, counting = self.outstanding, self.sinusoids_that_count
        if remaining := [each for each in outstanding if each.after.interval[0] > self._most_success(each)]:
            share = _highest_success(remaining)
            why = f"a trigger found on the original still works on {share:.0%} of the images"
            return Verdict(word="not cleansed", why=why)
        if doubt := self._doubt(outstanding, counting):
            return Verdict(word="could not tell", why=doubt)
        what = "the canary backdoors and the triggers found" if self.planted else "the triggers found"
        natural = [each for each in self.sinusoids if each not in counting]
        beside = ""
        if (share := _highest_success(natural)) > MAX_TRIGGER_SUCCESS:
            beside = f"; a sinusoidal pattern to another class, taken for natural, works on {share:.0%}"
        return Verdict(word="cleansed", why=f"{what} no longer work{beside}")

    def _doubt(self, outstanding: list[TriggerSuccess], counting: list[TriggerSuccess]) -> str:
        """What keeps the verdict from being good, as a sentence; empty if nothing does."""
        if (share := _highest_success(counting)) > MAX_TRIGGER_SUCCESS:
            return (
                f"a sinusoidal pattern still works on {share:.0%} of the images; "
                "such patterns mislead many clean networks too"
            )
        if self.trials and not self.planted:
            return "the canary backdoors could not be trained into a copy of the network"
        if not self.planted and not outstanding:
            return "no trigger stands out on the original, and no canaries were planted"
        if canaries := [each for each in self.planted if each.after.value > MAX_CANARY_SUCCESS]:
            return f"a canary backdoor still works on {_highest_success(canaries):.0%} of the images"
        if not self.enough_images:
            return f"{self.held_out} held-out images are too few for a verdict; 500 images in all suffice"
        if unclear := [each for each in outstanding if self._is_unclear(each)]:
            worst = max(unclear, key=lambda each: each.after.value).after
            return (
                f"a trigger found on the original works on {worst.hits} of {worst.of} held-out images; "
                "more images would tell whether it still works"
            )
        if self.confident_agreement.value < MIN_AGREEMENT:
            return (
                f"the cleansed network agrees with the original on only {self.confident_agreement.value:.0%} "
                "of the images on which the original is most confident"
            )
        return ""

    def _most_success(self, trigger: TriggerSuccess) -> float:
        """Most success on the result of a trigger that counts as removed.

        Universal perturbations and warps fool many networks for any class. So they may succeed as often as
        those that were searched anew on the result for the control classes, by their median. Before that
        search they are not judged.
        """
        if trigger.trigger in {"patch", DOMINANT}:
            return MAX_TRIGGER_SUCCESS
        if not self.residual_searches:
            return 1.0
        controls = [
            each.after.value
            for search in self.residual_searches
            for each in search.found
            if each.trigger == trigger.trigger and each.target not in search.suspects
        ]
        return max([MAX_TRIGGER_SUCCESS, *([median(controls)] if controls else [])])

    def _is_unclear(self, trigger: TriggerSuccess) -> bool:
        """Whether a trigger may still work: by its interval, unless control classes set the limit."""
        most = self._most_success(trigger)
        success = trigger.after.interval[1] if most == MAX_TRIGGER_SUCCESS else trigger.after.value
        return success > most


def canaries_removed(trials: Sequence[Sequence[TriggerSuccess]]) -> bool:
    """Whether the last level removed each canary that the copy had learned, and there was one.

    Args:
        trials: The canaries after each level that was tried on them.
    """
    learned = learned_canaries(trials)
    return bool(learned) and all(each.after.value <= MAX_CANARY_SUCCESS for each in learned)


def learned_canaries(trials: Sequence[Sequence[TriggerSuccess]]) -> list[TriggerSuccess]:
    """The canaries that the copy had learned, after the last level tried.

    Args:
        trials: The canaries after each level that was tried on them.
    """
    last = trials[-1] if trials else []
    return [each for each in last if each.before.value >= MIN_PLANTED_SUCCESS]


def standing_out(triggers: Iterable[Found]) -> list[tuple[str, int]]:
    """Kind and target class of the triggers that succeed, far more often than those of their kind for others.

    On a clean network triggers succeed, too, but then for most classes. Where most classes are reached, none
    stands out.

    Args:
        triggers: Kind, target class and success of each trigger on the original.
    """
    far, triggers = [], list(triggers)
    for kind in UNIVERSAL:
        alike = [(target, success) for each, target, success in triggers if each == kind]
        if len(alike) < 2:
            continue
        gaps = above_others(torch.tensor([log_odds(success) for _, success in alike])).tolist()
        for (target, success), gap in zip(alike, gaps, strict=True):
            others = median(share.value for other, share in alike if other != target)
            found = success.value >= MIN_TRIGGER_SUCCESS and others <= SATURATED
            if found and gap >= MIN_LOG_ODDS_GAP:
                far.append((kind, target))
    return far


def clear_classes(triggers: Iterable[Found]) -> set[int]:
    """The target classes of triggers that hardly stand out by nature.

    A patch stands out, which none did to a wrong class in the networks that were measured. Or triggers for
    other classes hardly succeed, or triggers of two kinds stand out for the same class.

    Args:
        triggers: Kind, target class and success of each trigger on the original.
    """
    triggers = list(triggers)
    far = standing_out(triggers)
    clear = set()
    for kind, target in far:
        others = [success.value for each, other, success in triggers if each == kind and other != target]
        alone = median(others) <= MAX_OTHERS_SUCCESS
        if kind == "patch" or alone or sum(target == other for _, other in far) > 1:
            clear.add(target)
    return clear


def may_be_planted(target: int, clear: set[int]) -> bool:
    """Whether a sinusoidal pattern to a class may be a backdoor's, where the classes of some are clear."""
    return not clear or target in clear


def saturated(triggers: Iterable[Found]) -> bool:
    """Whether triggers of one kind reach most classes, so that none stands out."""
    triggers = list(triggers)
    shares = [success.value for _, _, success in triggers]
    return bool(shares) and median(shares) > SATURATED and not standing_out(triggers)


def _highest_success(triggers: Sequence[TriggerSuccess]) -> float:
    """The highest success after the cleansing; 0 where there are no triggers."""
    return max((each.after.value for each in triggers), default=0.0)
