"""Sinusoidal triggers: a class to which one sinusoid leads, far more often than others to other classes."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from bcu_cli.detectors.base import Detector, Scores, Subject
from bcu_cli.detectors.input_optimisation import logits, of_other_classes
from bcu_cli.evaluation.measures import Proportion
from bcu_cli.evaluation.spectrum import LEARNING_RATE, SpectralAdversary, leads
from bcu_cli.training.forecast import TO_IMAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bcu_cli.evaluation.spectrum import Candidate


@dataclass(frozen=True, kw_only=True)
class SinusoidalTriggers(Detector):
    """The strongest sinusoid in a perturbation to each class, tried alone (``evaluation/spectrum.py``).

    The value of a class is the lead of its sinusoid over the best one to another class, in log-odds of
    success, if that is 90 % or more. The detector is bcu's. On large images it looks for nothing, since it
    was not tried there.

    Args:
        steps: Steps of the search.
        batch: Images in a step.
        most: Most images to search on.
        measured: Most images to measure on.
    """

    name: ClassVar[str] = "sinusoid"
    paper: ClassVar[str] = "own"
    needs_images: ClassVar[bool] = True
    searches: ClassVar[bool] = True
    at_large_size: ClassVar[Mapping[str, float]] = {"steps": 0}

    steps: int = 200
    batch: int = 128
    most: int = 1000
    measured: int = 300

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
        judge = judge[: self.measured]
        before = logits(subject.model, judge, subject.device).argmax(1)
        values = dict.fromkeys(subject.searched, -1.0)
        best: dict[int, tuple[Candidate, Proportion]] = {}
        for alike in self._search(subject, learn):
            successes = [self._success(subject, each, judge[before != each.target]) for each in alike]
            for candidate, success, lead in zip(alike, successes, leads(successes), strict=True):
                if lead > values[candidate.target]:
                    values[candidate.target], best[candidate.target] = lead, (candidate, success)
        target = max(values, key=lambda each: (values[each], best[each][1].value))
        found, success = best[target]
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
                "success": success.value,
                "images": success.of,
            },
            pictures={"sinusoid": (0.5 + 0.5 * found.sinusoid).clamp(0.0, 1.0)},
            examples=(shown, changed.clamp(0.0, 1.0)),
            searched=subject.classes,
        )

    def _search(self, subject: Subject, images: Tensor) -> list[list[Candidate]]:
        """The strongest sinusoid for each class, by budget."""
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
    def _success(self, subject: Subject, candidate: Candidate, images: Tensor) -> Proportion:
        """How often the sinusoid alone leads images of other classes to its class."""
        if not len(images):
            return Proportion(hits=0, of=1)
        changed = (images + candidate.amplitude * candidate.sinusoid.to(images)).clamp(0.0, 1.0)
        answers = logits(subject.model, changed, subject.device).argmax(1)
        return Proportion(hits=int((answers == candidate.target).sum()), of=len(images))
