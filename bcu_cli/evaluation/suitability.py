"""Whether images suit a network that is to be cleansed with them, by its own answers to them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, log, log10
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.models.classifier import are_probabilities, name_of
from bcu_cli.training.inference import in_batches

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device

ENOUGH = 900
"""Images to learn from, below which more would keep more accuracy: 1,000 less the tenth held out."""
EVEN, COVERED = 0.7, 0.95
"""Over what share of the classes the answers must be spread, and what share must be answered at all."""
SURE = 0.88
"""The median confidence below which images are not what a network was made for, unless it is a poor one.

All from ``examples/results.md``, section "Images that suit".
"""
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Suitability:
    """What a network answers to images, as far as it tells how well they cover what it knows.

    Args:
        counts: How many images it takes for each class; one or more in all.
        classes: The names of the classes.
        median_confidence: Of the highest probabilities that it gives each image, in (0, 1].
    """

    counts: tuple[int, ...]
    classes: tuple[str, ...]
    median_confidence: float

    @property
    def images(self) -> int:
        """How many images."""
        return sum(self.counts)

    @property
    def answered(self) -> int:
        """How many classes some image is taken for."""
        return sum(count > 0 for count in self.counts)

    @property
    def effective_classes(self) -> float:
        """Over how many classes the answers are spread: the exponential of the entropy of their shares.

        In [1, classes]: that many classes with equally many images have the same entropy.
        """
        shares = [count / self.images for count in self.counts if count]
        return exp(-sum(share * log(share) for share in shares))

    def as_json(self) -> dict[str, Any]:
        """For a report; of the classes that are answered at all, the rarest few."""
        answered = [k for k in self._rarest_first() if self.counts[k]]
        return {
            "answered_classes": self.answered,
            "of_classes": len(self.counts),
            "effective_classes": self.effective_classes,
            "rarest_classes": {self.classes[k]: self.counts[k] for k in answered[:_NAMED]},
            "median_confidence": self.median_confidence,
            "warnings": self.warnings(),
        }

    def warnings(self) -> list[str]:
        """What is wanting, and how many more of what kind would help: a sentence each, or none."""
        return [text for text in (self._few(), self._uneven(), self._unsure()) if text]

    def _few(self) -> str | None:
        if self.images >= ENOUGH:
            return None
        more = _round_up(ENOUGH - self.images)
        return f"{self.images} images to learn from are few: about {more} more would keep more accuracy"

    def _uneven(self) -> str | None:
        number = len(self.counts)
        expected = _expected_classes(number, self.images)
        if self.effective_classes >= EVEN * expected and self.answered >= COVERED * expected:
            return None
        fair = self.images / number
        rare = [k for k in self._rarest_first() if self.counts[k] < fair]
        named = ", ".join(self.classes[k] for k in rare[:_NAMED])
        named += f" and {len(rare) - _NAMED} more" if len(rare) > _NAMED else ""
        return f"{self._said()}: add images of {named} (about {ceil(ENOUGH / number)} of each)"

    def _said(self) -> str:
        """How uneven the answers are."""
        if self.answered < len(self.counts):
            of = len(self.counts)
            return f"the model answers only {self.answered} of {of} classes for these images"
        most = max(self.counts)
        name = self.classes[self.counts.index(most)]
        return f"the model takes {most / self.images:.0%} of these images for {name}"

    def _unsure(self) -> str | None:
        if self.median_confidence >= SURE:
            return None
        confidence = f"median confidence {self.median_confidence:.2f}"
        return (
            f"the model is unsure of these images ({confidence}): unless it is unsure of all, "
            f"about {ENOUGH} nearer to what it was made for would keep more accuracy"
        )

    def _rarest_first(self) -> list[int]:
        return sorted(range(len(self.counts)), key=self.counts.__getitem__)


def suitability(
    model: Classifier, images: Tensor, device: Device, *, classes: tuple[str, ...] = ()
) -> Suitability:
    """Show a network the images, in fp32 and eval mode.

    Args:
        model: Maps images in [0, 1] to logits, or probabilities; put into eval mode, and moved to the device.
        images: uint8 ``[N, C, H, W]``, one or more.
        device: Where.
        classes: The names of its classes; "class 0" and so on where there are none.

    Raises:
        AnswersError: Its answers are NaN or infinite.
        TrainingError: A single image does not fit into memory.
    """
    model.to(device.torch).eval()
    confidence, answers = in_batches(
        lambda batch: confidence_and_answer(model(batch)), images, device, name=name_of(model)
    ).T
    number = model.num_classes
    return Suitability(
        counts=tuple(torch.bincount(answers.long(), minlength=number).tolist()),
        classes=classes or tuple(f"class {k}" for k in range(number)),
        median_confidence=float(confidence.median()),
    )


def confidence_and_answer(logits: Tensor) -> Tensor:
    """Highest probability and its class of each image, float32 ``[N, 2]``.

    Args:
        logits: A network's answers, ``[N, K]``; probabilities are taken as they are.
    """
    probabilities = logits if are_probabilities(logits) else logits.softmax(1)
    return torch.stack([each.float() for each in probabilities.max(1)], 1)


def _expected_classes(number: int, images: int) -> float:
    """How many of ``number`` equally frequent classes are among ``images`` images drawn at random."""
    return number * (1 - (1 - 1 / number) ** images)


def _round_up(count: int) -> int:
    """To halves of the leading digit's unit: 10, 15, 20, …, 100, 150 and so on."""
    unit = max(1, int(10 ** int(log10(count))) // 2)
    return ceil(count / unit) * unit
