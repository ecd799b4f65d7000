"""Universal changes: for each class, one change of all images that makes most be predicted as it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.detectors.base import Detector, Scores, Subject, outlier
from bcu_cli.detectors.input_optimisation import logits, margin, of_other_classes, success_rates
from bcu_cli.training.forecast import TO_IMAGES
from bcu_cli.training.inference import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UniversalChange(Detector):
    """Base class of detectors that search a change with parameters within ``radius`` for each class.

    A change is measured on other images than it is optimised on. The value of a class is the log-odds of its
    success: from 90 % to 99 % is as far as from 50 % to 92 %.

    Args:
        radius: Largest absolute value of a parameter.
        steps: Steps of signed gradients.
        batch: Images in a step for each class.
        most: Most images to optimise on, and most to measure on.
    """

    needs_images: ClassVar[bool] = True
    searches: ClassVar[bool] = True
    at_large_size: ClassVar[Mapping[str, float]] = {"steps": 15, "batch": 4, "most": 32}

    radius: float
    steps: int = 40
    batch: int
    most: int = 256

    @abstractmethod
    def shape(self, subject: Subject) -> tuple[int, ...]:
        """The shape of one change."""

    @abstractmethod
    def apply(self, images: Tensor, changes: Tensor) -> Tensor:
        """Every image with every class's change, ``[K * N, C, H, W]``, grouped by class.

        Args:
            images: Float ``[N, C, H, W]`` in [0, 1].
            changes: Parameters of the changes, ``[K, *shape]``.
        """

    @abstractmethod
    def pictures(self, image: Tensor, change: Tensor) -> dict[str, Tensor]:
        """Images, by name, that show a change ``[1, *shape]``, on an image ``[1, C, H, W]``."""

    def passes(self, subject: Subject) -> float:
        """See :meth:`Detector.passes`."""
        return len(subject.searched) * (TO_IMAGES * self.steps * self.batch + self.most)

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        model, device = subject.model, subject.device
        learn, judge = subject.divided(self.most)
        changes = torch.cat([self._find(part, learn) for part in subject.in_parts(self.batch)])
        rates = success_rates(
            model,
            judge,
            lambda images, place: self.apply(images, changes[place : place + 1]),
            subject.searched,
            device,
        )
        values = rates.logit(eps=0.5 / len(judge))
        score, place = outlier(values)
        target, change = subject.searched[place], changes[place : place + 1]
        shown = of_other_classes(model, judge, target, device)
        return Scores(
            detector=self.name,
            score=score,
            target=target,
            per_class=subject.of_all(values),
            evidence={"success": float(rates[place]), "images": len(judge), "radius": self.radius},
            pictures=self.pictures(judge[:1], change),
            examples=(shown, self.apply(shown, change)),
            searched=subject.classes,
        )

    def _find(self, subject: Subject, images: Tensor) -> Tensor:
        """Optimise by signed gradients of the margin; steps fall from a quarter of the range to nearly 0."""
        model, device, generator = subject.model, subject.device, subject.generator()
        classes = torch.tensor(subject.searched).to(device.torch)
        changes = torch.zeros(len(classes), *self.shape(subject), device=device.torch)
        targets = classes.repeat_interleave(self.batch)
        with frozen(model):
            for step in range(self.steps):
                index = torch.randint(len(images), (self.batch,), generator=generator)
                seen = images[index.to(device.torch, non_blocking=True)]
                changes.requires_grad_(True)
                answers = logits(model, self.apply(seen, changes), device)
                (gradient,) = torch.autograd.grad(margin(answers, targets).clamp(max=1.0).sum(), changes)
                size = 2.0 * self.radius * (1.0 - step / self.steps) / 4.0
                changes = (changes.detach() + size * gradient.sign()).clamp(-self.radius, self.radius)
                subject.report(step + 1, self.steps)
        return changes
