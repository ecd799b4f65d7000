"""Universal changes: for each class one change of all images that leads most of them to it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.detectors.base import Detector, Scores, Subject, stands_out
from bcu_cli.detectors.optimising import logits, margin, success_rates
from bcu_cli.training.inference import frozen

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UniversalChange(Detector):
    """A change is numbers from ``-radius`` to ``radius``; it is judged on other images than it is found on.

    A class's value is the log-odds of being led to it: from 90 % to 99 % is as far as from 50 % to 92 %.

    Args:
        radius: Of the numbers.
        steps: Of signed gradients, in a batch of ``batch`` images for each class.
        batch: Images of a step.
        most: Images to learn on, and as many to judge by.
    """

    needs_images: ClassVar[bool] = True

    radius: float
    steps: int = 40
    batch: int
    most: int = 256

    @abstractmethod
    def shape(self, subject: Subject) -> tuple[int, ...]:
        """Of one change."""

    @abstractmethod
    def under(self, images: Tensor, changes: Tensor) -> Tensor:
        """Every image under every class's change, ``[K * N, C, H, W]``, those of one class together.

        Args:
            images: Float ``[N, C, H, W]`` in [0, 1].
            changes: ``[K, *shape]``.
        """

    @abstractmethod
    def drawn(self, image: Tensor, change: Tensor) -> dict[str, Tensor]:
        """The most suspicious class's change ``[1, *shape]``, and an image ``[1, C, H, W]``, as images."""

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        model, device = subject.model, subject.device
        learn, judge = subject.divided(self.most)
        changes = self._find(subject, learn)
        rates = success_rates(
            model, judge, lambda images, c: self.under(images, changes[c : c + 1]), len(changes), device
        )
        per_class = rates.logit(eps=0.5 / len(judge))
        score, target = stands_out(per_class)
        return Scores(
            detector=self.name,
            score=score,
            target=target,
            per_class=per_class,
            evidence={"success": float(rates[target]), "images": len(judge), "radius": self.radius},
            pictures=self.drawn(judge[:1], changes[target : target + 1]),
        )

    def _find(self, subject: Subject, images: Tensor) -> Tensor:
        """By signed gradients of the margin; the first step is a quarter of the range, the last nearly 0."""
        model, device, generator = subject.model, subject.device, subject.generator()
        changes = torch.zeros(model.num_classes, *self.shape(subject), device=device.torch)
        wanted = torch.arange(model.num_classes, device=device.torch).repeat_interleave(self.batch)
        with frozen(model):
            for step in range(self.steps):
                seen = images[torch.randint(len(images), (self.batch,), generator=generator)]
                changes.requires_grad_(True)
                answers = logits(model, self.under(seen, changes), device)
                (gradient,) = torch.autograd.grad(margin(answers, wanted).clamp(max=1.0).sum(), changes)
                size = 2.0 * self.radius * (1.0 - step / self.steps) / 4.0
                changes = (changes.detach() + size * gradient.sign()).clamp(-self.radius, self.radius)
                subject.report(step + 1, self.steps)
        return changes
