"""The measures of the field, each with a 95 % interval, and how far a class stands out from others."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
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
    """What a trigger does, on the images whose true class is not what it leads to.

    Args:
        target_class: What it leads to.
        asr: Attack success rate: answered with the target class.
        ra: Robust accuracy: answered with their true class all the same.
    """

    target_class: Target
    asr: Proportion
    ra: Proportion


def matching(answers: Tensor, expected: Tensor) -> Proportion:
    """Share of answers, int64 ``[N]``, that are as expected: accuracy, or agreement with a model."""
    return Proportion(hits=int((answers == expected).sum()), of=len(expected))


def by_class(hits: Tensor, labels: Tensor, num_classes: int) -> tuple[Proportion | None, ...]:
    """Share of hits (bool ``[N]``) among the images of each true class; None where a class has no image."""
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    of_them = torch.bincount(labels[hits], minlength=num_classes).tolist()
    return tuple(Proportion(hits=h, of=n) if n else None for h, n in zip(of_them, counts, strict=True))


def attack_measures(
    answers: Tensor, labels: Tensor, target_class: Target | None, num_classes: int
) -> tuple[AttackMeasures, ...]:
    """ASR and RA towards the target, or towards every class; images of the target class left out.

    Args:
        answers: int64 ``[N]``, to triggered images.
        labels: int64 ``[N]``, their true classes.
        target_class: What the trigger leads to; None measures each class that there are other images than of.
        num_classes: Of the model.

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
    """Share of images on which a model answers what ``reference`` (int64 ``[N]``) says."""
    return matching(predict(model, images, device), reference)


def attack_success(
    model: nn.Module, data: ImageSet, trigger: Trigger, target_class: Target | None, device: Device
) -> AttackMeasures:
    """Attack success rate (ASR) and robust accuracy (RA), images of the target class left out.

    Args:
        model: Maps images in [0, 1] to logits.
        data: Labelled images.
        trigger: Put on each.
        target_class: What it leads to; None takes the class with the highest ASR, the worst case.
        device: Where.

    Raises:
        ImagesError: All images are of the target class.
    """
    answers = predict(model, data.images, device, transform=trigger.apply_to_bytes)
    return worst(attack_measures(answers, labels_of(data), target_class, len(data.classes)))


def worst(measured: Sequence[AttackMeasures]) -> AttackMeasures:
    """That with the highest ASR, the first of equals."""
    return max(measured, key=lambda m: m.asr.value)


def labels_of(data: ImageSet) -> Tensor:
    """The true classes, int64 ``[N]``; nothing can be measured without."""
    if data.labels is None:
        raise ValueError("measuring needs labels")
    return data.labels


def _towards(target: Target, answers: Tensor, labels: Tensor, num_classes: int) -> AttackMeasures:
    wanted = target_labels(target, labels, num_classes)
    others = labels != wanted
    return AttackMeasures(
        target_class=target,
        asr=matching(answers[others], wanted[others]),
        ra=matching(answers[others], labels[others]),
    )


def above_others(per_class: Tensor) -> Tensor:
    """How far each class's value lies above the median of the others', ``[K]``, in the values' own units.

    Not in units of their spread, as is common: between so few classes that is itself a matter of chance, and
    clean networks whose classes happen to be alike would stand out most.

    Args:
        per_class: float ``[K]``.
    """
    count = len(per_class)
    others = per_class.expand(count, count)[~torch.eye(count, dtype=torch.bool)].view(count, count - 1)
    return per_class - others.median(1).values
