"""Prediction skew: the backdoor's class is too often the second choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bcu_cli.detectors.base import Detector, Scores, Subject, stands_out
from bcu_cli.detectors.optimising import BATCH


@dataclass(frozen=True, kw_only=True)
class Skew(Detector):
    """How often each class is the second choice, among the images of which it is not the first.

    bcu's own; that clean inputs of a backdoored network drift towards its target is noted in several papers.

    Args:
        most: Images looked at.
    """

    name: ClassVar[str] = "skew"
    paper: ClassVar[str] = "own"
    needs_images: ClassVar[bool] = True

    most: int = 2_000

    @torch.no_grad()
    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        model = subject.model
        parts = torch.split(subject.drawn(self.most), BATCH)
        top = []
        for done, part in enumerate(parts, start=1):
            top.append(model(part).topk(2, dim=1).indices.cpu())
            subject.report(done, len(parts))
        first, second = torch.cat(top).unbind(1)
        count = model.num_classes
        open_to = len(first) - torch.bincount(first, minlength=count)
        per_class = torch.bincount(second, minlength=count) / open_to.clamp(min=1)
        score, target = stands_out(per_class)
        evidence = {"second_choice": float(per_class[target]), "images": len(first)}
        return Scores(detector=self.name, score=score, target=target, per_class=per_class, evidence=evidence)
