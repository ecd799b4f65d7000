"""The work of method ``auto`` before it begins: its stages, and the passes of images in each."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from statistics import mean
from typing import TYPE_CHECKING

from bcu_cli.defenses.adversarial import (
    canary,
    mixing,
    original_triggers,
    patches,
    residual_search,
    searching,
    sinusoids,
    verification,
)
from bcu_cli.evaluation import class_screening
from bcu_cli.evaluation.adversary import UNIVERSAL
from bcu_cli.training.forecast import FORWARD, TO_IMAGES, TO_WEIGHTS, Outlook, PlannedStage

if TYPE_CHECKING:
    from bcu_cli.defenses.auto import Auto

ADVICE = "a GPU shortens it, and so do fewer --epochs or, of more than 2,560 images, fewer --max-images"

_NEW_NEIGHBOURS = 0.75
"""Share of the neighbours of a patch that the search on the cleansed network has not seen yet."""


def outlook(defense: Auto) -> Outlook:
    """The stages of a run, and the passes of one with ``--quick``.

    Args:
        defense: The method, with its options decided.
    """
    quick = _stages(defense, quick=True)
    stages = quick if defense.options.quick else _stages(defense, quick=False)
    shortens = defense.effort.reinitialise and not defense.options.quick
    shorter = {"--quick": Outlook(stages=quick).passes} if shortens else {}
    return Outlook(stages=stages, shorter=shorter, advice=ADVICE)


def _stages(defense: Auto, *, quick: bool) -> tuple[PlannedStage, ...]:
    from bcu_cli.defenses import auto  # which imports this module

    count, held_out = len(defense.data), len(defense.held_out)
    effort = defense.effort
    batch = count / ceil(count / defense.batch_size)
    search = TO_IMAGES * effort.search_steps * batch
    classes = min(defense.teacher.num_classes, class_screening.MOST_CLASSES)
    tried = min(effort.sinusoid_images, held_out)
    trying = min(searching.MOST_ANSWERS, len(UNIVERSAL) * classes * held_out) + sinusoids.NUM_KINDS * tried
    listed = _listing(defense, largest=searching.LIMITS.patch)
    screened = defense.teacher.num_classes > class_screening.MOST_CLASSES
    screening = PlannedStage(
        title="screening classes",
        passes=search + FORWARD * effort.search_steps * batch,
        after=class_screening.STARTS * len(UNIVERSAL) * tried + listed,
    )
    weaknesses = PlannedStage(title="looking for weaknesses", passes=search, after=trying + listed)
    halved = [
        PlannedStage(title="looking for smaller triggers", passes=search, after=trying + listed, sure=False)
        for _ in range(original_triggers.MOST_HALVINGS)
    ]
    spectral = PlannedStage(
        title="looking for a sinusoidal trigger",
        passes=TO_IMAGES * effort.spectral_steps * batch,
        sure=False,
    )
    all_levels = list(range(auto.GENTLE, len(auto.LEVELS)))
    levels = all_levels if effort.reinitialise else [auto.GENTLE, all_levels[-1]]
    return (
        *([screening] if screened else []),
        weaknesses,
        PlannedStage(title="looking for triggers", passes=search, after=trying),
        *halved,
        *([spectral] if effort.spectral_steps else []),
        *(_tuning(defense, batch, weaknesses) if effort.reinitialise and not quick else []),
        *(stage for level in levels for stage in _level(defense, batch, level)),
    )


def _listing(defense: Auto, *, largest: float = 1.0) -> float:
    """Passes while every listed patch, of at most this share of the image, is tried on one network."""
    listed = patches.draw(defense.teacher.preprocessing.input_size, seed=0, largest=largest)
    return FORWARD * len(listed) / defense.effort.patch_interval * patches.SCREENING_IMAGES


def _cleansing(defense: Auto, batch: float) -> float:
    """Passes of a cleansing: both networks see each image two or three times, the adversary half."""
    from bcu_cli.defenses import auto

    per_epoch = min(ceil(len(defense.data) / defense.batch_size), auto.MOST_STEPS)
    steps = (defense.options.epochs or 0) * per_epoch
    seen = 3 if defense.effort.mixed_images else 2
    return steps * batch * (seen * FORWARD + 0.5 * TO_IMAGES + seen * TO_WEIGHTS)


def _tuning(defense: Auto, batch: float, weaknesses: PlannedStage) -> list[PlannedStage]:
    """Planting canaries, and searching and cleansing their copy; left out where a trigger stands out."""
    from bcu_cli.defenses import auto

    planting = defense.effort.canary_steps * batch * (FORWARD + 2 * TO_WEIGHTS)
    trying = 2 * len(canary.NAMES) * len(defense.held_out)
    cleansings = [
        PlannedStage(
            title=f"cleansing canaries, level {level}",
            passes=_cleansing(defense, batch),
            after=trying,
            sure=level == auto.GENTLE,
        )
        for level in range(auto.GENTLE, len(auto.LEVELS))
    ]
    search = replace(weaknesses, title=f"{weaknesses.title} of the copy")
    return [PlannedStage(title="planting canaries", passes=planting, after=trying), search, *cleansings]


def _mixing(defense: Auto) -> float:
    """Passes while student and mixes are compared by a trigger, and the student with the original."""
    return (2 + len(mixing.SHARES)) * min(defense.effort.mixing_images, len(defense.data))


def _level(defense: Auto, batch: float, level: int) -> list[PlannedStage]:
    """A cleansing and the search for what remains."""
    from bcu_cli.defenses import auto

    small = min(len(defense.data), defense.effort.batch_size)
    trying, comparing = _verifying(defense)
    gentle = level == auto.GENTLE
    cleansing = PlannedStage(
        title=f"cleansing, level {level}",
        passes=_cleansing(defense, batch),
        after=trying + (_mixing(defense) if gentle else 0.0),
        sure=gentle,
    )
    search = PlannedStage(
        title="looking for remaining triggers",
        passes=TO_IMAGES * defense.effort.verification_steps * small,
        after=comparing,
        sure=gentle,
    )
    # Each mix that is not good is followed by another one, which is searched as well.
    more = len(mixing.onward(mixing.SHARES[0])) - 1 if gentle else 0
    again = replace(search, passes=search.passes + trying, sure=False)
    return [cleansing, search, *[again] * more]


def _verifying(defense: Auto) -> tuple[float, float]:
    """Passes while listed patches and some near them are tried, and while the best changes are compared."""
    classes = min(defense.teacher.num_classes, verification.MOST_SUSPECTS + verification.MOST_CONTROLS)
    finalists = (
        residual_search.FINALISTS + residual_search.CLIMBED + len(UNIVERSAL) * verification.STARTS_PER_CLASS
    )
    selection = min(defense.effort.selection_images, len(defense.data))
    judged = (1 + len(UNIVERSAL)) * len(defense.held_out)
    shape = defense.teacher.preprocessing.input_size
    one_of_each_size_and_place = patches.draw(shape, seed=0)[:: patches.AT_EACH_PLACE]
    near = mean(len(each.neighbours(shape)) for each in one_of_each_size_and_place)
    new = _NEW_NEIGHBOURS * residual_search.CLIMBING_STEPS * residual_search.BEAM * near
    climbing = FORWARD * classes * patches.SCREENING_IMAGES * (residual_search.FINALISTS + new)
    return 2 * _listing(defense) + climbing, 2 * FORWARD * classes * (finalists * selection + judged)
