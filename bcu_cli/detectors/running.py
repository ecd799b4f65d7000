"""Running all detectors on one network, one after another."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli import detectors
from bcu_cli.detectors.base import FEWEST_CLASSES, find
from bcu_cli.detectors.input_optimisation import BATCH
from bcu_cli.errors import ScanError
from bcu_cli.models.classifier import not_finite
from bcu_cli.models.outputs import are_probabilities
from bcu_cli.training.forecast import Outlook, PlannedStage
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.detectors.base import Detector, OnStep, Scores, Subject

SUSPICIOUS, UNDECIDED, FAILED = "scan-suspicious", "scan-undecided", "scan-failed"
"""Rules of a scan: the network looks backdoored, is undecided, or could not be scanned."""
_IMAGES_A_CLASS, _MOST_VALUES = 32, 2**27
"""Most images for each class that a detector feeds to the network at once, and most values of them all."""
_NOISE, _IMAGES = 64, 512
"""Number of random inputs, or most images, that the network is checked with before the scan."""
_SMALLEST_RANGE, _LARGEST_SHARE = 0.1, 0.9
"""Least median range of an image's logits, and most images that are predicted as one class."""


@dataclass(frozen=True, kw_only=True)
class DetectorRun:
    """Result of one detector, and the seconds that it took."""

    scores: Scores
    seconds: float

    def document(self) -> dict[str, Any]:
        """The result as plain values, without images."""
        scores = self.scores
        return {
            "detector": scores.detector,
            "score": scores.score,
            "class": scores.target,
            "per_class": [float(value) for value in scores.per_class],
            "evidence": scores.evidence,
            "seconds": self.seconds,
        }


def run_all(subject: Subject, on_start: Callable[[str], OnStep]) -> list[DetectorRun]:
    """Run all detectors in alphabetical order; without images, only those that need none.

    Args:
        subject: The network, with or without images.
        on_start: Called with the name of a detector before it starts; returns its progress callback.

    Raises:
        AnswersError: The network outputs NaN, infinity, or no logits at all.
        ScanError: Detectors cannot judge the network or the images, or would need too much memory.
    """
    _refuse_sizes(subject)
    _refuse_answers(subject)
    runs = []
    for kind in _kinds(subject):
        started = time.perf_counter()
        scores = kind().scan(replace(subject, on_step=on_start(kind.name)))
        if not _is_finite(scores):
            raise not_finite(subject.model.name)
        runs.append(DetectorRun(scores=scores, seconds=time.perf_counter() - started))
    return runs


def outlook(subject: Subject) -> Outlook:
    """The detectors that :func:`run_all` runs, as stages with their work."""
    stages = (PlannedStage(title=kind.name, passes=kind().passes(subject)) for kind in _kinds(subject))
    return Outlook(stages=tuple(stages), advice="a GPU shortens it")


def _kinds(subject: Subject) -> list[type[Detector]]:
    """The detectors in alphabetical order; without images, only those that need none."""
    kinds = map(find, detectors.names())
    return [kind for kind in kinds if subject.images is not None or not kind.needs_images]


def _refuse_sizes(subject: Subject) -> None:
    classes = subject.model.num_classes
    if classes < FEWEST_CLASSES:
        raise ScanError(
            f"a network of {number_of(classes, 'class', 'classes')} has too few to compare",
            f"the detectors compare classes; they need {FEWEST_CLASSES} or more",
        )
    size = subject.model.preprocessing.input_size
    if classes * _IMAGES_A_CLASS * math.prod(size) > _MOST_VALUES:
        raise ScanError(
            f"{classes} classes of {size[1]}x{size[2]} images are too many to be scanned together",
            "larger networks are not supported yet",
        )


@torch.no_grad()
def _refuse_answers(subject: Subject) -> None:
    """Refuse outputs on which all detectors would find nothing, since the network would look clean."""
    model = subject.model
    if subject.images is None:
        shape = (_NOISE, *model.preprocessing.input_size)
        images = torch.rand(shape, generator=subject.generator()).to(subject.device.torch)
    else:
        images = subject.drawn(_IMAGES)
    answers = torch.cat([model(part).float() for part in torch.split(images, BATCH)])
    if not answers.isfinite().all():
        raise not_finite(subject.model.name)
    if are_probabilities(answers):
        raise ScanError(
            "the network answers with probabilities, and the detectors need logits",
            "export it without its last softmax",
        )
    if float((answers.amax(1) - answers.amin(1)).median()) < _SMALLEST_RANGE:
        raise ScanError(
            "the network's logits hardly differ, so the detectors cannot judge it",
            "its last layer may have been scaled down; get another copy",
        )
    share, most = torch.bincount(answers.argmax(1), minlength=model.num_classes).max(0)
    if subject.images is not None and int(share) > _LARGEST_SHARE * len(answers):
        raise ScanError(
            f"the network predicts class {int(most)} for {int(share)} of {number_of(len(answers), 'image')}",
            "give --images of all its classes, like its training data",
        )


def _is_finite(scores: Scores) -> bool:
    numbers = [value for value in scores.evidence.values() if isinstance(value, float)]
    tensors = [scores.per_class, *scores.pictures.values()]
    return all(map(math.isfinite, [scores.score, *numbers])) and all(
        bool(tensor.isfinite().all()) for tensor in tensors
    )
