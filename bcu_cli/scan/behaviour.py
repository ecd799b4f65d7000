"""What the detectors say of one network, one after another."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bcu_cli import scan
from bcu_cli.errors import ScanError
from bcu_cli.scan.base import FEWEST_CLASSES, find

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.scan.base import OnStep, Scores, Subject

SUSPICIOUS, UNDECIDED, FAILED = "scan-suspicious", "scan-undecided", "scan-failed"
"""The rules: it looks backdoored; the scores lie between; the detectors could not look at it."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What one detector said, and how long it took."""

    scores: Scores
    seconds: float

    def document(self) -> dict[str, Any]:
        """All of it but the pictures as plain values."""
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
        ScanError: The network has too few classes for one to stand out, or answers that are no numbers.
    """
    if subject.model.num_classes < FEWEST_CLASSES:
        raise ScanError(
            f"with {subject.model.num_classes} classes none can stand out from the others",
            f"the detectors compare classes; they need {FEWEST_CLASSES} or more",
        )
    looked = []
    for kind in map(find, scan.names()):
        if kind.needs_images and subject.images is None:
            continue
        started = time.perf_counter()
        scores = kind().scan(replace(subject, on_step=on_start(kind.name)))
        if not _is_finite(scores):
            raise ScanError(
                f"the network's answers are NaN or infinite, so that {kind.name} can tell nothing",
                "its weights are far too large or damaged; get another copy",
            )
        looked.append(Looked(scores=scores, seconds=time.perf_counter() - started))
    return looked


def _is_finite(scores: Scores) -> bool:
    numbers = [value for value in scores.evidence.values() if isinstance(value, float)]
    tensors = [scores.per_class, *scores.pictures.values()]
    return all(map(math.isfinite, [scores.score, *numbers])) and all(
        bool(tensor.isfinite().all()) for tensor in tensors
    )
