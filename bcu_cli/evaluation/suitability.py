"""Whether images suit the cleansing of a network, judged by the network's predictions."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, log, log10
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.models.outputs import are_probabilities
from bcu_cli.training.inference import in_batches

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device

ENOUGH = 900
"""Number of training images below which more would keep more accuracy: 1,000 less the held-out tenth."""
EVEN, COVERED = 0.7, 0.95
"""Least share of effective classes, and least share of predicted classes, relative to an even sample."""
SURE = 0.88
"""Median confidence below which images differ from the training data, unless the network is poor.

The constants are from ``examples/results.md``, section "Images that suit".
"""
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Suitability:
    """A network's predictions on images, which show how well the images cover its classes.

    Args:
        counts: Number of images predicted as each class; at least one image in all.
        classes: Names of the classes.
        median_confidence: Median of the highest probability of each image, in (0, 1].
    """

    counts: tuple[int, ...]
    classes: tuple[str, ...]
    median_confidence: float

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.counts)

    @property
    def answered(self) -> int:
        """Number of classes that are predicted for an image."""
        return sum(count > 0 for count in self.counts)

    @property
    def effective_classes(self) -> float:
        """Effective number of predicted classes: the exponential of the entropy of their shares.

        The value lies in [1, classes]; n equally frequent classes give n.
        """
        shares = [count / self.images for count in self.counts if count]
        return exp(-sum(share * log(share) for share in shares))

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report, with the rarest of the predicted classes."""
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
        """A sentence for each shortcoming, with the number and kind of images that would help."""
        return [text for text in (self._few(), self._uneven(), self._unsure()) if text]

    def _few(self) -> str | None:
        if self.images >= ENOUGH:
            return None
        more = _round_up(ENOUGH - self.images)
        return f"{self.images} training images are few: about {more} more would keep more accuracy"

    def _uneven(self) -> str | None:
        number = len(self.counts)
        expected = _expected_classes(number, self.images)
        if self.effective_classes >= EVEN * expected and self.answered >= COVERED * expected:
            return None
        fair = self.images / number
        rare = [k for k in self._rarest_first() if self.counts[k] < fair]
        named = ", ".join(self.classes[k] for k in rare[:_NAMED])
        named += f" and {len(rare) - _NAMED} more" if len(rare) > _NAMED else ""
        return f"{self._imbalance()}: add images of {named} (about {ceil(ENOUGH / number)} of each)"

    def _imbalance(self) -> str:
        """The imbalance of the predictions, in words."""
        if self.answered < len(self.counts):
            of = len(self.counts)
            return f"the model predicts only {self.answered} of {of} classes for these images"
        most = max(self.counts)
        name = self.classes[self.counts.index(most)]
        return f"the model predicts {name} for {most / self.images:.0%} of these images"

    def _unsure(self) -> str | None:
        if self.median_confidence >= SURE:
            return None
        confidence = f"median confidence {self.median_confidence:.2f}"
        return (
            f"the model is unsure of these images ({confidence}): unless it is unsure of all, "
            f"about {ENOUGH} images closer to its training data would keep more accuracy"
        )

    def _rarest_first(self) -> list[int]:
        return sorted(range(len(self.counts)), key=self.counts.__getitem__)


def suitability(
    model: Classifier, images: Tensor, device: Device, *, classes: tuple[str, ...] = ()
) -> Suitability:
    """Evaluate how well images suit a network, in fp32 and eval mode.

    Args:
        model: Maps images in [0, 1] to logits or probabilities; it is put into eval mode and moved to the
            device.
        images: One or more images, uint8 ``[N, C, H, W]``.
        device: The device to run on.
        classes: Class names; "class 0" and so on where there are none.

    Raises:
        AnswersError: The outputs are NaN or infinite.
        TrainingError: A single image does not fit into memory.
    """
    model.to(device.torch).eval()
    confidence, answers = in_batches(
        lambda batch: confidence_and_answer(model(batch)), images, device, network=model
    ).T
    number = model.num_classes
    return Suitability(
        counts=tuple(torch.bincount(answers.long(), minlength=number).tolist()),
        classes=classes or tuple(f"class {k}" for k in range(number)),
        median_confidence=float(confidence.median()),
    )


def confidence_and_answer(logits: Tensor) -> Tensor:
    """The highest probability of each image and its class, float32 ``[N, 2]``.

    Args:
        logits: Outputs of a network, ``[N, K]``: logits or probabilities.
    """
    probabilities = logits if are_probabilities(logits) else logits.softmax(1)
    return torch.stack([each.float() for each in probabilities.max(1)], 1)


def _expected_classes(number: int, images: int) -> float:
    """Expected number of classes in a random sample, if ``number`` classes are equally frequent."""
    return number * (1 - (1 - 1 / number) ** images)


def _round_up(count: int) -> int:
    """Round up to half a unit of the leading digit: 10, 15, 20, …, 100, 150 and so on."""
    unit = max(1, int(10 ** int(log10(count))) // 2)
    return ceil(count / unit) * unit
