"""Sinusoidal triggers: classes to which one sinusoid leads nearly as often as the best sum of many."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from bcu_cli.detectors.base import Detector, Scores, Subject
from bcu_cli.detectors.input_optimisation import logits, of_other_classes
from bcu_cli.evaluation.measures import Proportion
from bcu_cli.evaluation.spectrum import LEARNING_RATE, MIN_CONCENTRATION, SpectralAdversary, is_planted
from bcu_cli.training.forecast import TO_IMAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bcu_cli.evaluation.spectrum import Candidate


@dataclass(frozen=True, kw_only=True)
class SinusoidalTriggers(Detector):
    """How much of the perturbation that leads to a class is a single sinusoid (``evaluation/spectrum.py``).

    The value of a class is the share of the perturbation's power in one frequency. From ``MIN_CONCENTRATION``
    on it is 0 unless that sinusoid alone leads there nearly as often as the whole perturbation. The detector
    is bcu's. On large images it looks for nothing, since it was not tried there.

    Args:
        steps: Steps of the search.
        batch: Images in a step.
        most: Most images to search on, and most to measure on.
    """

    name: ClassVar[str] = "sinusoid"
    paper: ClassVar[str] = "own"
    needs_images: ClassVar[bool] = True
    searches: ClassVar[bool] = True
    at_large_size: ClassVar[Mapping[str, float]] = {"steps": 0}

    steps: int = 200
    batch: int = 128
    most: int = 1000

    def passes(self, subject: Subject) -> float:  # noqa: ARG002 - the same for all
        """See :meth:`Detector.passes`."""
        return TO_IMAGES * self.steps * self.batch

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        if not self.steps:
            subject.report(1, 1)
            return Scores(
                detector=self.name,
                score=0.0,
                target=None,
                per_class=torch.empty(0),
                evidence={"search": "not on images of more than 64x64 pixels"},
            )
        learn, judge = subject.divided(self.most)
        before = logits(subject.model, judge, subject.device).argmax(1)
        values = dict.fromkeys(subject.searched, 0.0)
        strongest: dict[int, Candidate] = {}
        for candidate in self._search(subject, learn):
            target, value = candidate.target, candidate.concentration
            if value >= MIN_CONCENTRATION and not is_planted(
                *self._alone_and_together(subject, candidate, judge[before != target])
            ):
                value = 0.0
            if target not in strongest or value > values[target]:
                values[target], strongest[target] = value, candidate
        target = max(values, key=lambda each: values[each])
        found = strongest[target]
        alone, together = self._alone_and_together(subject, found, judge[before != target])
        shown = of_other_classes(subject.model, judge, target, subject.device)
        changed = shown + found.amplitude * found.sinusoid.to(shown)
        return Scores(
            detector=self.name,
            score=values[target],
            target=target,
            per_class=subject.of_all(torch.tensor(list(values.values()))),
            evidence={
                "cycles_down": found.cycles[0],
                "cycles_across": found.cycles[1],
                "amplitude": found.amplitude,
                "success": alone.value,
                "success_of_sum": together.value,
                "images": together.of,
            },
            pictures={"sinusoid": (0.5 + 0.5 * found.sinusoid).clamp(0.0, 1.0)},
            examples=(shown, changed.clamp(0.0, 1.0)),
            searched=subject.classes,
        )

    def _search(self, subject: Subject, images: Tensor) -> list[Candidate]:
        """The perturbation of each class and budget, with its strongest sinusoid."""
        size: Any = subject.model.preprocessing.input_size[1:]
        device, generator = subject.device, subject.generator()
        adversary = SpectralAdversary(subject.searched, size, seed=subject.seed).to(device.torch)
        optimizer = adversary.optimizer()
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1.0 + cos(pi * step / self.steps))
            index = torch.randint(len(images), (self.batch,), generator=generator)
            seen = images[index.to(device.torch, non_blocking=True)]
            with device.autocast():
                loss = adversary.loss(subject.model, seen, first=step * self.batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            subject.report(step + 1, self.steps)
        return adversary.candidates()

    @torch.no_grad()
    def _alone_and_together(
        self, subject: Subject, candidate: Candidate, images: Tensor
    ) -> tuple[Proportion, Proportion]:
        """Success on images of other classes: of the sinusoid alone, and of the whole perturbation."""
        hits = []
        for pattern in (candidate.amplitude * candidate.sinusoid, candidate.perturbation):
            changed = (images + pattern.to(images)).clamp(0.0, 1.0)
            answers = logits(subject.model, changed, subject.device).argmax(1) if len(images) else images[:0]
            hits.append(int((answers == candidate.target).sum()))
        alone, together = (Proportion(hits=each, of=max(1, len(images))) for each in hits)
        return alone, together
