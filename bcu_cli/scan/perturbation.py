"""Universal perturbations: one small change of all pixels that leads many images to one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.scan.base import Detector, Scores, Subject, stands_out
from bcu_cli.scan.optimising import Ascent, leading, success_rates

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation(Detector):
    """For each class the change within an L∞ ball that leads most images to it, judged on other images.

    A class's value is the log-odds of being led to it: from 90 % to 99 % is as far as from 50 % to 92 %.

    After Moosavi-Dezfooli et al. 2017, one change for each class. A backdoored network has such a shortcut to
    its target and is led to it by a smaller change than to other classes.

    Args:
        radius: Of the ball, on a scale of 0 to 1.
        steps: Of signed gradients, in a batch of ``batch`` images for each class.
        batch: Images of a step.
        most: Images to learn on, and as many to judge by.
    """

    name: ClassVar[str] = "perturbation"
    paper: ClassVar[str] = "Moosavi-Dezfooli et al., Universal adversarial perturbations, CVPR 2017"
    needs_images: ClassVar[bool] = True

    radius: float = 10 / 255
    steps: int = 40
    batch: int = 32
    most: int = 256

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        model = subject.model
        learn, judge = subject.divided(self.most)
        count = model.num_classes

        def under(seen: Tensor, changes: Tensor) -> Tensor:
            return (seen[None] + changes[:, None]).clamp(0.0, 1.0).flatten(0, 1)

        changes = leading(
            subject,
            learn,
            torch.zeros(count, *learn.shape[1:]),
            under,
            Ascent(self.radius, self.steps, self.batch),
        )
        rates = success_rates(model, judge, lambda x, c: under(x, changes[c : c + 1]), count, subject.device)
        per_class = rates.logit(eps=0.5 / len(judge))
        score, target = stands_out(per_class)
        evidence = {"success": float(rates[target]), "images": len(judge), "radius": self.radius}
        picture = (0.5 + changes[target] / (2.0 * self.radius)).clamp(0.0, 1.0).cpu()
        return Scores(
            detector=self.name,
            score=score,
            target=target,
            per_class=per_class,
            evidence=evidence,
            pictures={"perturbation": picture},
        )
