"""Prediction skew: the target of a backdoor is too often the second-highest class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.detectors.base import Detector, Scores, Subject, outlier
from bcu_cli.detectors.input_optimisation import batches

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Skew(Detector):
    """The frequency of each class as the second-highest, among images where it is not the highest.

    The detector is bcu's; several papers note that clean inputs of a backdoored network drift to its target.

    Args:
        most: Most images to use.
    """

    name: ClassVar[str] = "skew"
    paper: ClassVar[str] = "own"
    needs_images: ClassVar[bool] = True
    at_large_size: ClassVar[Mapping[str, float]] = {"most": 300}

    most: int = 2_000

    def passes(self, subject: Subject) -> float:
        """See :meth:`Detector.passes`."""
        return float(min(self.most, 0 if subject.images is None else len(subject.images)))

    @torch.no_grad()
    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        model = subject.model
        parts = batches(subject.drawn(self.most))
        top = []
        for done, part in enumerate(parts, start=1):
            top.append(model(part).topk(2, dim=1).indices.cpu())
            subject.report(done, len(parts))
        first, second = torch.cat(top).unbind(1)
        count = model.num_classes
        not_first = len(first) - torch.bincount(first, minlength=count)
        per_class = torch.bincount(second, minlength=count) / not_first.clamp(min=1)
        score, target = outlier(per_class)
        evidence = {"second_choice": float(per_class[target]), "images": len(first)}
        return Scores(detector=self.name, score=score, target=target, per_class=per_class, evidence=evidence)
