"""The work of method ``auto`` before it begins: its stages, and the passes of images in each."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from bcu_cli.defenses import canary, sinusoids
from bcu_cli.defenses.adversary import UNIVERSAL
from bcu_cli.training.forecast import FORWARD, TO_IMAGES, TO_WEIGHTS, Outlook, PlannedStage

if TYPE_CHECKING:
    from bcu_cli.defenses.auto import Auto

ADVICE = "a GPU shortens it, and so do fewer --epochs or, of more than 2,560 images, fewer --max-images"


def outlook(defense: Auto) -> Outlook:
    """The stages of a run, and the passes of one with ``--quick``.

    Args:
        defense: The method, with its options decided.
    """
    quick = _stages(defense, quick=True)
    stages = quick if defense.options.quick else _stages(defense, quick=False)
    shorter = {} if defense.options.quick else {"--quick": Outlook(stages=quick).passes}
    return Outlook(stages=stages, shorter=shorter, advice=ADVICE)


def _stages(defense: Auto, *, quick: bool) -> tuple[PlannedStage, ...]:
    from bcu_cli.defenses import auto  # which imports this module

    count, held_out = len(defense.data), len(defense.held_out)
    batch = count / ceil(count / defense.options.batch_size)
    searching = TO_IMAGES * auto.SEARCH_STEPS * batch
    kinds = len(UNIVERSAL) * defense.teacher.num_classes
    trying = min(auto.MOST_ANSWERS, kinds * held_out) + sinusoids.NUM_KINDS * min(
        auto.MAX_SINUSOID_IMAGES, held_out
    )
    canaries = 2 * len(canary.NAMES) * held_out
    planting = auto.CANARY_STEPS * batch * (FORWARD + 2 * TO_WEIGHTS)
    steps = (defense.options.epochs or 0) * min(ceil(count / defense.options.batch_size), auto.MOST_STEPS)
    # The teacher sees each image, the adversary half of them, the student each one twice.
    cleansing = steps * batch * (FORWARD + 0.5 * TO_IMAGES + 2 * TO_WEIGHTS)
    small = min(count, auto.VERIFICATION_BATCH)
    levels = range(1, len(auto.LEVELS) + 1)
    tuning = [
        PlannedStage(title="planting canaries", passes=planting),
        *(
            PlannedStage(
                title=f"cleansing canaries, level {level}", passes=cleansing, after=canaries, sure=level == 1
            )
            for level in levels
        ),
    ]
    return (
        PlannedStage(title="looking for weaknesses", passes=searching, after=trying),
        *([] if quick else tuning),
        PlannedStage(title="looking for triggers", passes=searching, after=trying),
        *(
            PlannedStage(title=f"cleansing, level {level}", passes=cleansing, sure=level == 1)
            for level in levels
        ),
        PlannedStage(
            title="looking for remaining triggers", passes=TO_IMAGES * auto.VERIFICATION_STEPS * small
        ),
    )
