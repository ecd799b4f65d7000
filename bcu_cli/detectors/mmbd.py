"""MM-BD: a backdoored class can be answered with far more certainty than the others; needs no images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bcu_cli.detectors.base import Detector, Scores, Subject, stands_out
from bcu_cli.detectors.optimising import logits, margin
from bcu_cli.training.inference import frozen
from bcu_cli.training.optimizers import Adam

SMALLEST_MARGIN = 0.01
"""Classes that no input is answered with have a margin below 0, which has no logarithm."""


@dataclass(frozen=True, kw_only=True)
class MaximumMargin(Detector):
    """The largest margin that any input of [0, 1] reaches for a class, for each class: its logarithm.

    Deviation from the paper (30 starts, 300 steps of SGD at 0.01): fewer starts and steps, of Adam, which
    scales each pixel's step.

    Args:
        starts: Random inputs for each class.
        steps: Of each.
        learning_rate: Of Adam, in units of the pixels' range.
    """

    name: ClassVar[str] = "mmbd"
    paper: ClassVar[str] = "Wang et al., MM-BD, IEEE S&P 2024, arXiv:2205.06900"
    needs_images: ClassVar[bool] = False

    starts: int = 8
    steps: int = 100
    learning_rate: float = 0.05

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        model, device = subject.model, subject.device
        classes = torch.arange(model.num_classes).repeat_interleave(self.starts).to(device.torch)
        shape = (len(classes), *model.preprocessing.input_size)
        inputs = torch.rand(shape, generator=subject.generator()).to(device.torch)
        inputs.requires_grad_(True)
        optimizer = Adam([inputs], lr=self.learning_rate)
        with frozen(model):
            for step in range(self.steps):
                margin(logits(model, inputs, device), classes).sum().neg().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    inputs.clamp_(0.0, 1.0)
                subject.report(step + 1, self.steps)
            with torch.no_grad():
                reached = margin(model(inputs).float(), classes)
        margins = reached.view(-1, self.starts).amax(1).cpu()
        per_class = margins.clamp(min=SMALLEST_MARGIN).log()
        score, target = stands_out(per_class)
        evidence = {"margin": float(margins[target]), "median": float(margins.median())}
        picture = inputs.detach()[target * self.starts + int(reached.view(-1, self.starts)[target].argmax())]
        return Scores(
            detector=self.name,
            score=score,
            target=target,
            per_class=per_class,
            evidence=evidence,
            pictures={"input": picture.cpu()},
        )
