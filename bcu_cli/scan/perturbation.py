"""Universal perturbations: one small change of all pixels that leads many images to one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.scan.base import Detector, Scores, Subject, stands_out
from bcu_cli.scan.optimising import frozen, logits, margin, success_rates

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation(Detector):
    """For each class the change within an L∞ ball that leads most images to it, judged on other images.

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
        model, device, generator = subject.model, subject.device, subject.generator()
        learn, judge = subject.divided(self.most)
        count = model.num_classes
        changes = torch.zeros(count, *learn.shape[1:], device=device.torch)
        with frozen(model):
            for step in range(self.steps):
                seen = learn[torch.randint(len(learn), (self.batch,), generator=generator)]
                size = 2.0 * self.radius * (1.0 - step / self.steps) / 4.0
                changes = self._step(model, seen, changes, size, device)
                subject.report(step + 1, self.steps)
            rates = success_rates(model, judge, lambda x, c: (x + changes[c]).clamp(0.0, 1.0), count, device)
        score, target = stands_out(rates)
        evidence = {"success": float(rates[target]), "images": len(judge), "radius": self.radius}
        picture = (0.5 + changes[target] / (2.0 * self.radius)).clamp(0.0, 1.0).cpu()
        return Scores(
            detector=self.name,
            score=score,
            target=target,
            per_class=rates,
            evidence=evidence,
            pictures={"perturbation": picture},
        )

    def _step(self, model: Classifier, seen: Tensor, changes: Tensor, size: float, device: Device) -> Tensor:
        """One signed step of every class's change."""
        changes = changes.detach().requires_grad_(True)
        views = (seen[None] + changes[:, None]).clamp(0.0, 1.0).flatten(0, 1)  # [K * batch, C, H, W]
        wanted = torch.arange(len(changes), device=device.torch).repeat_interleave(len(seen))
        margin(logits(model, views, device), wanted).clamp(max=1.0).sum().backward()  # type: ignore[no-untyped-call]
        gradient = changes.grad
        assert gradient is not None  # noqa: S101 - backward has just made it
        return (changes.detach() + size * gradient.sign()).clamp(-self.radius, self.radius)
