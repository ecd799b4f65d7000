"""The measures of the field with 95 % intervals, and the gaps between classes."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.errors import ImagesError
from bcu_cli.training.inference import predict
from bcu_cli.triggers.base import target_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from bcu_cli.images.folder import ImageSet
    from bcu_cli.training.devices import Device
    from bcu_cli.triggers.base import Target, Trigger


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """Hits out of a number of images."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.hits / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval (Wilson 1927), in [0, 1]."""
        z = 1.959964
        centre = (self.hits + z * z / 2) / (self.of + z * z)
        half = z / (self.of + z * z) * sqrt(self.hits * (self.of - self.hits) / self.of + z * z / 4)
        return max(0.0, centre - half), min(1.0, centre + half)

    def as_json(self) -> dict[str, Any]:
        """Value, counts and interval for a report."""
        low, high = self.interval
        return {"value": self.value, "hits": self.hits, "of": self.of, "interval95": [low, high]}


@dataclass(frozen=True, kw_only=True)
class AttackMeasures:
    """Success of a trigger on the images of other classes than the target.

    Args:
        target_class: The target class.
        asr: Attack success rate: share of images predicted as the target class.
        ra: Robust accuracy: share of images predicted as their true class.
    """

    target_class: Target
    asr: Proportion
    ra: Proportion


def matching(answers: Tensor, expected: Tensor) -> Proportion:
    """Share of predictions, int64 ``[N]``, that equal the expected ones: accuracy or agreement."""
    return Proportion(hits=int((answers == expected).sum()), of=len(expected))


def by_class(hits: Tensor, labels: Tensor, num_classes: int) -> tuple[Proportion | None, ...]:
    """Share of hits (bool ``[N]``) among the images of each true class; None where a class has no image."""
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    of_them = torch.bincount(labels[hits], minlength=num_classes).tolist()
    return tuple(Proportion(hits=h, of=n) if n else None for h, n in zip(of_them, counts, strict=True))


def attack_measures(
    answers: Tensor, labels: Tensor, target_class: Target | None, num_classes: int
) -> tuple[AttackMeasures, ...]:
    """ASR and RA for the target, or for every class; images of the target class are left out.

    Args:
        answers: Predictions on triggered images, int64 ``[N]``.
        labels: True classes of the images, int64 ``[N]``.
        target_class: The target class; None measures every class that can be one.
        num_classes: Number of classes of the model.

    Raises:
        ImagesError: All images are of the target class.
    """
    targets = range(num_classes) if target_class is None else [target_class]
    measured = [_towards(target, answers, labels, num_classes) for target in targets]
    possible = tuple(m for m in measured if m.asr.of)
    if not possible:
        raise ImagesError("all images are of the target class", "ASR is measured on those of other classes")
    return possible


def accuracy(model: nn.Module, data: ImageSet, device: Device) -> Proportion:
    """Clean accuracy (ACC)."""
    return matching(predict(model, data.images, device), labels_of(data))


def agreement(model: nn.Module, reference: Tensor, images: Tensor, device: Device) -> Proportion:
    """Share of images for which a model predicts the classes in ``reference`` (int64 ``[N]``)."""
    return matching(predict(model, images, device), reference)


def attack_success(
    model: nn.Module, data: ImageSet, trigger: Trigger, target_class: Target | None, device: Device
) -> AttackMeasures:
    """Attack success rate (ASR) and robust accuracy (RA), images of the target class are left out.

    Args:
        model: Maps images in [0, 1] to logits.
        data: Labelled images.
        trigger: The trigger to apply to each image.
        target_class: The target class; None takes the class with the highest ASR, the worst case.
        device: The device to run on.

    Raises:
        ImagesError: All images are of the target class.
    """
    answers = predict(model, data.images, device, transform=trigger.apply_to_bytes)
    return worst(attack_measures(answers, labels_of(data), target_class, len(data.classes)))


def worst(measured: Sequence[AttackMeasures]) -> AttackMeasures:
    """The measures with the highest ASR; the first of equal ones."""
    return max(measured, key=lambda m: m.asr.value)


def labels_of(data: ImageSet) -> Tensor:
    """The true classes, int64 ``[N]``; data without labels is an error."""
    if data.labels is None:
        raise ValueError("measuring needs labels")
    return data.labels


def _towards(target: Target, answers: Tensor, labels: Tensor, num_classes: int) -> AttackMeasures:
    targets = target_labels(target, labels, num_classes)
    others = labels != targets
    return AttackMeasures(
        target_class=target,
        asr=matching(answers[others], targets[others]),
        ra=matching(answers[others], labels[others]),
    )


def log_odds(success: Proportion) -> float:
    """Log-odds of a success, smoothed so that 0 and 100 % stay finite."""
    return log((success.hits + 0.5) / (success.of - success.hits + 0.5))


def above_others(per_class: Tensor) -> Tensor:
    """The gap of each class's value to the median of the other classes, ``[K]``, in units of the values.

    The gap is not divided by the spread, as is common. With few classes the spread varies by chance, and
    clean networks with similar classes would have the largest gaps.

    Args:
        per_class: Values of the classes, float ``[K]``; NaN for a class without a value, which has no gap and
            counts for no other class.
    """
    given = ~per_class.isnan()
    values = per_class[given]
    ordered, order = values.sort()
    middle = (len(values) - 2) // 2  # of the others; the lower one of two
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    medians = torch.where(ranks > middle, ordered[middle], ordered[middle + 1])
    gaps = per_class.clone()
    gaps[given] = values - medians
    return gaps
