"""What the detectors say of one network, one after another."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli import detectors
from bcu_cli.detectors.base import FEWEST_CLASSES, find
from bcu_cli.detectors.optimising import BATCH
from bcu_cli.errors import ScanError
from bcu_cli.models.classifier import are_probabilities, not_finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.detectors.base import OnStep, Scores, Subject

SUSPICIOUS, UNDECIDED, FAILED = "scan-suspicious", "scan-undecided", "scan-failed"
"""The rules: it looks backdoored; the scores lie between; the detectors could not look at it."""
_IMAGES_A_CLASS, _MOST_VALUES = 32, 2**27
"""What the hungriest detector feeds the network at once for each class; the most values of all of them."""
_NOISE, _PICTURES = 64, 512
_SMALLEST_RANGE, _LARGEST_SHARE = 0.1, 0.9


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What one detector said, and how long it took."""

    scores: Scores
    seconds: float

    def document(self) -> dict[str, Any]:
        """All of it but the images as plain values."""
        scores = self.scores
        return {
            "detector": scores.detector,
            "score": scores.score,
            "class": scores.target,
            "per_class": [float(value) for value in scores.per_class],
            "evidence": scores.evidence,
            "seconds": self.seconds,
        }


def look(subject: Subject, on_start: Callable[[str], OnStep]) -> list[Looked]:
    """Ask every detector that can work with what there is, in alphabetical order.

    Args:
        subject: The network, and images or none; detectors that need images are left out without.
        on_start: Called with the name of a detector before it starts; returns what is told of its progress.

    Raises:
        AnswersError: The network answers with NaN, infinity, or no logits at all.
        ScanError: The network or the images are such that the detectors could tell nothing, or need too much.
    """
    _refuse_sizes(subject)
    _refuse_answers(subject)
    looked = []
    for kind in map(find, detectors.names()):
        if kind.needs_images and subject.images is None:
            continue
        started = time.perf_counter()
        scores = kind().scan(replace(subject, on_step=on_start(kind.name)))
        if not _is_finite(scores):
            raise not_finite(subject.model.name)
        looked.append(Looked(scores=scores, seconds=time.perf_counter() - started))
    return looked


def _refuse_sizes(subject: Subject) -> None:
    classes = subject.model.num_classes
    if classes < FEWEST_CLASSES:
        raise ScanError(
            f"with {classes} classes none can stand out from the others",
            f"the detectors compare classes; they need {FEWEST_CLASSES} or more",
        )
    size = subject.model.preprocessing.input_size
    if classes * _IMAGES_A_CLASS * math.prod(size) > _MOST_VALUES:
        raise ScanError(
            f"{classes} classes of {size[1]}x{size[2]} images are too many to be looked at together",
            "detectors of larger networks are not built yet",
        )


@torch.no_grad()
def _refuse_answers(subject: Subject) -> None:
    """Answers of which no detector could tell anything would look clean."""
    model = subject.model
    if subject.images is None:
        shape = (_NOISE, *model.preprocessing.input_size)
        pictures = torch.rand(shape, generator=subject.generator()).to(subject.device.torch)
    else:
        pictures = subject.drawn(_PICTURES)
    answers = torch.cat([model(part).float() for part in torch.split(pictures, BATCH)])
    if not answers.isfinite().all():
        raise not_finite(subject.model.name)
    if are_probabilities(answers):
        raise ScanError(
            "the network answers with probabilities, and the detectors need logits",
            "export it without its last softmax",
        )
    if float((answers.amax(1) - answers.amin(1)).median()) < _SMALLEST_RANGE:
        raise ScanError(
            "the network's answers hardly differ, so that the detectors can tell nothing",
            "its last layer may have been scaled down; get another copy",
        )
    share, most = torch.bincount(answers.argmax(1), minlength=model.num_classes).max(0)
    if subject.images is not None and int(share) > _LARGEST_SHARE * len(answers):
        raise ScanError(
            f"the network takes {int(share)} of {len(answers)} images for class {int(most)}",
            "give --images of all its classes, like those that it was made for",
        )


def _is_finite(scores: Scores) -> bool:
    numbers = [value for value in scores.evidence.values() if isinstance(value, float)]
    tensors = [scores.per_class, *scores.pictures.values()]
    return all(map(math.isfinite, [scores.score, *numbers])) and all(
        bool(tensor.isfinite().all()) for tensor in tensors
    )
