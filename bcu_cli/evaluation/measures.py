"""The measures of the field, each as hits out of a number of images with a 95 % interval."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import ImagesError
from bcu_cli.training.inference import predict
from bcu_cli.triggers.base import answers_wanted

if TYPE_CHECKING:
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


def accuracy(model: nn.Module, data: ImageSet, device: Device) -> Proportion:
    """Clean accuracy (ACC)."""
    if data.labels is None:
        raise ValueError("accuracy needs labels")
    answers = predict(model, data.images, device)
    return Proportion(hits=int((answers == data.labels).sum()), of=len(data))


def agreement(model: nn.Module, reference: Tensor, images: Tensor, device: Device) -> Proportion:
    """Share of images on which a model answers what ``reference`` (int64 ``[N]``) says."""
    return Proportion(hits=int((predict(model, images, device) == reference).sum()), of=len(images))


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
    if data.labels is None:
        raise ValueError("attack success needs labels")
    answers = predict(model, data.images, device, transform=trigger.apply_to_bytes)
    targets = range(int(answers.max()) + 1) if target_class is None else [target_class]
    measured = [_towards(target, answers, data.labels, len(data.classes)) for target in targets]
    possible = [m for m in measured if m.asr.of]
    if not possible:
        raise ImagesError(
            f"all images in {data.root} are of the target class", "ASR is measured on the other classes"
        )
    return max(possible, key=lambda m: m.asr.value)


def _towards(target: Target, answers: Tensor, labels: Tensor, num_classes: int) -> AttackMeasures:
    wanted = answers_wanted(target, labels, num_classes)
    others = labels != wanted
    count = int(others.sum())
    return AttackMeasures(
        target_class=target,
        asr=Proportion(hits=int((answers[others] == wanted[others]).sum()), of=count),
        ra=Proportion(hits=int((answers[others] == labels[others]).sum()), of=count),
    )
