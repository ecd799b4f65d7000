"""The loss of a cleansing by method ``auto``: the original teaches its copy, against an adversary.

The student must give the teacher's answers to unchanged images, on mixes of two of them (Zhang et al., mixup,
ICLR 2018), and on changed images that mislead both networks (shared adversarial examples; Wei et al., SAU,
NeurIPS 2023). What each part is good for was measured (``docs/auto-log.md``, ``examples/ablation.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bcu_cli.defenses.adversarial.corruptions import corrupt, uniform
from bcu_cli.defenses.adversarial.sinusoids import add_sinusoids
from bcu_cli.defenses.bcu import distillation_loss

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

    from bcu_cli.defenses.adversarial.effort import Effort
    from bcu_cli.evaluation.adversary import Adversary
    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Objective

TEMPERATURE = 2.0
DISAGREEMENT_WEIGHT = 4.0
"""Weight of a changed image that misleads both networks; added to 1 for a clean one they disagree on.

So harmless changes do not crowd out the clean images; figures are in ``docs/auto-log.md``.
"""
SPARE_DISAGREEMENT = 0.06
"""Share of clean images on which the networks may disagree before changed ones count no more than usual."""
MOST_EMPHASIS = 4.0
"""Factor of the weight of changed images where the networks agree on all clean ones."""
SINUSOID_DIVISOR = 3
"""One in this many images of the half without an adversary gets a sinusoid; the others, corruptions."""
FEWEST_COMPARED = 2
"""Fewest classes whose logits are compared on clean images."""


def training_objective(
    student: Classifier,
    teacher: Classifier,
    adversary: Adversary,
    sinusoid_weights: Tensor,
    how: Effort,
    clear_classes: Collection[int] = (),
) -> Objective:
    """The loss of a cleansing: the teacher's answers to clean images are right for changed ones, too.

    A clean image counts 1, and ``DISAGREEMENT_WEIGHT`` more where student and teacher disagree. A changed one
    counts ``DISAGREEMENT_WEIGHT`` where the change misleads both of them to the same class, else nothing
    (shared adversarial examples; Wei et al., NeurIPS 2023). So it unlearns the teacher's faults alone. It
    counts more where that costs no accuracy (:func:`emphasis`). On mixes of two clean images the teacher's
    answer is right as well: so the student stays near the teacher on more images than were given. On large
    images every change that misleads the student counts, but less, and there are no such mixes.

    A backdoor also shows in the logit that the teacher gives its target class on clean images. So on clean
    images the logits of the classes that are clear are compared on mixes of images alone.

    Args:
        student: The network that learns.
        teacher: The original.
        adversary: Learns changes that mislead the student.
        sinusoid_weights: How often each kind of sinusoidal pattern is drawn.
        how: Weights and parts of the loss.
        clear_classes: Classes that are clearly a backdoor's target (``evidence.py``).
    """
    weight = how.error_factor * DISAGREEMENT_WEIGHT
    enough = teacher.num_classes - len(clear_classes) >= FEWEST_COMPARED
    left_out = sorted(clear_classes) if how.mixed_images and enough else []

    def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
        half = len(views) // 2
        quota = half // SINUSOID_DIVISOR
        adversarial, surrogate = adversary.attack(student, views[half:])
        with_sinusoids = add_sinusoids(views[:quota], sinusoid_weights)
        changed = [with_sinusoids, corrupt(views[quota:half]), adversarial]
        pairs = [mixup(views)] if how.mixed_images else []
        images = torch.cat([views, *changed, *pairs]).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            expected, on_changed_before, *expected_on_pairs = teacher(images).split(len(views))
        on_clean, on_changed, *on_pairs = student(images).split(len(views))
        right, answers = expected.argmax(1), on_changed.argmax(1)
        misled = answers != right
        if not how.all_errors:
            misled = misled & (answers == on_changed_before.argmax(1))
        disagree = on_clean.argmax(1) != right
        clean_weights = 1.0 + weight * disagree
        changed_weights = weight * emphasis(disagree) * misled
        compared = without(on_clean, left_out), without(expected, left_out)
        loss = distillation_loss(*compared, TEMPERATURE, clean_weights)
        loss = loss + distillation_loss(on_changed, expected, TEMPERATURE, changed_weights)
        for answer, taught in zip(on_pairs, expected_on_pairs, strict=True):
            loss = loss + distillation_loss(answer, taught, TEMPERATURE)
        return loss + surrogate

    return objective


def without(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """The logits of all other classes, float ``[N, K]`` in and ``[N, K - len(classes)]`` out.

    It slices, since an index would have to travel to the device in each step.

    Args:
        logits: Float ``[N, K]``.
        classes: Indices of classes in ascending order.
    """
    starts = [0, *(each + 1 for each in classes)]
    ends = [*classes, logits.shape[1]]
    return torch.cat([logits[:, start:end] for start, end in zip(starts, ends, strict=True)], 1)


def mixup(images: Tensor) -> Tensor:
    """Each image mixed with the one before it, at a share between 0 and 1 (Zhang et al., mixup, ICLR 2018).

    Args:
        images: Float ``[N, C, H, W]``.
    """
    return torch.lerp(images, images.roll(1, 0), uniform(images, 1, 1, 1))


def emphasis(disagree: Tensor) -> Tensor:
    """How much the changed images of a batch count, from 1 to ``MOST_EMPHASIS``.

    It grows where the student answers nearly all clean images as the teacher does. In batches of 15 images or
    fewer, which cannot tell, it stays 1.

    Args:
        disagree: Whether the networks disagree on each clean image, bool ``[N]``.
    """
    spare = SPARE_DISAGREEMENT * (len(disagree) + 1) / (disagree.sum() + 1)
    return spare.clamp(1.0, MOST_EMPHASIS)
