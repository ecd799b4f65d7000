"""Prediction skew: the backdoor's class is too often the second choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.scan.base import Detector, OnStep, Scores, stands_out
from bcu_cli.scan.optimising import BATCH, as_floats

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device


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
    def scan(
        self,
        model: Classifier,
        images: Tensor | None,
        device: Device,
        *,
        seed: int,
        on_step: OnStep | None = None,
    ) -> Scores:
        """See :meth:`Detector.scan`."""
        assert images is not None  # noqa: S101 - it says that it needs them
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: self.most]
        parts = torch.split(images[order], BATCH)
        top = []
        for done, part in enumerate(parts, start=1):
            top.append(model(as_floats(part, device)).topk(2, dim=1).indices.cpu())
            if on_step:
                on_step(done, len(parts))
        first, second = torch.cat(top).unbind(1)
        count = model.num_classes
        open_to = len(first) - torch.bincount(first, minlength=count)
        per_class = torch.bincount(second, minlength=count) / open_to.clamp(min=1)
        score, target = stands_out(per_class)
        evidence = {"second_choice": float(per_class[target]), "images": len(first)}
        return Scores(detector=self.name, score=score, target=target, per_class=per_class, evidence=evidence)
