"""Running all detectors on one network, one after another."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli import detectors
from bcu_cli.detectors.base import find
from bcu_cli.detectors.input_optimisation import batches
from bcu_cli.detectors.screening import TITLE, Screening, is_needed, most_searched
from bcu_cli.errors import ScanError
from bcu_cli.evaluation.class_screening import FEWEST_CLASSES, LARGEST_SHARE
from bcu_cli.models.classifier import not_finite
from bcu_cli.models.outputs import are_probabilities
from bcu_cli.training.forecast import Outlook, PlannedStage
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.detectors.base import Detector, OnStep, Scores, Subject

SUSPICIOUS, UNDECIDED, FAILED = "scan-suspicious", "scan-undecided", "scan-failed"
"""Rules of a scan: the network looks backdoored, is undecided, or could not be scanned."""
_NOISE, _IMAGES, _LARGE_IMAGES = 64, 512, 64
"""Number of random inputs, or most images, that the network is checked with before the scan."""
_SMALLEST_RANGE = 0.1
"""Least median range of an image's logits."""


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
            "per_class": [None if math.isnan(value) else value for value in scores.per_class.tolist()],
            "evidence": scores.evidence,
            "seconds": self.seconds,
        }


def run_all(subject: Subject, on_start: Callable[[str], OnStep]) -> list[DetectorRun]:
    """Run all detectors; without images, only those that need none.

    Those that search nothing run first. Where there are too many classes to search all, they and untargeted
    changes choose the classes that the others search.

    Args:
        subject: The network, with or without images.
        on_start: Called with the name of a detector before it starts; returns its progress callback.

    Returns:
        The results in alphabetical order of the detectors' names.

    Raises:
        AnswersError: The network outputs NaN, infinity, or no logits at all.
        ScanError: Detectors cannot judge the network or the images.
    """
    _refuse_few_classes(subject)
    _refuse_answers(subject)
    quick, searching = _detectors(subject)
    runs = [_run(each, subject, on_start) for each in quick]
    if is_needed(subject):
        screening = Screening().sized(subject)
        classes = screening.choose(replace(subject, on_step=on_start(TITLE)), [run.scores for run in runs])
        subject = replace(subject, classes=classes)
    runs += [_run(each, subject, on_start) for each in searching]
    return sorted(runs, key=lambda run: run.scores.detector)


def outlook(subject: Subject) -> Outlook:
    """The stages of :func:`run_all`, with their work."""
    quick, searching = _detectors(subject)
    stages = [PlannedStage(title=each.name, passes=each.passes(subject)) for each in quick]
    if is_needed(subject):
        stages.append(PlannedStage(title=TITLE, passes=Screening().sized(subject).passes(subject)))
        subject = replace(subject, classes=tuple(range(most_searched(subject))))
    stages += [PlannedStage(title=each.name, passes=each.passes(subject)) for each in searching]
    return Outlook(stages=tuple(stages), advice="a GPU shortens it")


def _run(detector: Detector, subject: Subject, on_start: Callable[[str], OnStep]) -> DetectorRun:
    started = time.perf_counter()
    scores = detector.scan(replace(subject, on_step=on_start(detector.name)))
    if not _is_finite(scores):
        raise not_finite(subject.model.name)
    return DetectorRun(scores=scores, seconds=time.perf_counter() - started)


def _detectors(subject: Subject) -> tuple[list[Detector], list[Detector]]:
    """The detectors that search nothing and those that search; without images, those that need none."""
    kinds = map(find, detectors.names())
    used = [kind() for kind in kinds if subject.images is not None or not kind.needs_images]
    sized = [each.sized(subject) for each in used]
    return [each for each in sized if not each.searches], [each for each in sized if each.searches]


def _refuse_few_classes(subject: Subject) -> None:
    classes = subject.model.num_classes
    if classes < FEWEST_CLASSES:
        raise ScanError(
            f"a network of {number_of(classes, 'class', 'classes')} has too few to compare",
            f"the detectors compare classes; they need {FEWEST_CLASSES} or more",
        )


@torch.no_grad()
def _refuse_answers(subject: Subject) -> None:
    """Refuse outputs on which all detectors would find nothing, since the network would look clean."""
    model = subject.model
    if subject.images is None:
        shape = (_NOISE, *model.preprocessing.input_size)
        images = torch.rand(shape, generator=subject.generator()).to(subject.device.torch)
    else:
        images = subject.drawn(_LARGE_IMAGES if subject.large else _IMAGES)
    answers = torch.cat([model(part).float() for part in batches(images)])
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
    if subject.images is not None and int(share) > LARGEST_SHARE * len(answers):
        raise ScanError(
            f"the network predicts class {int(most)} for {int(share)} of {number_of(len(answers), 'image')}",
            "give --images of all its classes, like its training data",
        )


def _is_finite(scores: Scores) -> bool:
    numbers = [value for value in scores.evidence.values() if isinstance(value, float)]
    values = scores.per_class if scores.searched is None else scores.per_class[list(scores.searched)]
    tensors = [values, *scores.pictures.values()]
    return all(map(math.isfinite, [scores.score, *numbers])) and all(
        bool(tensor.isfinite().all()) for tensor in tensors
    )
