"""Trigger inversion: for each class, the smallest patch that makes images be predicted as it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bcu_cli.detectors.base import Detector, Scores, Subject, outlier
from bcu_cli.detectors.input_optimisation import logits, of_other_classes, success_rates
from bcu_cli.evaluation.adversary import resized, resolution
from bcu_cli.training.forecast import TO_IMAGES
from bcu_cli.training.inference import frozen
from bcu_cli.training.optimizers import Adam

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Inversion(Detector):
    """Neural Cleanse: for each class a minimal mask and a pattern that make all images be predicted as it.

    A class with a much smaller mask than the others stands out. As in the paper, the weight of the mask's
    size grows while the patch works and shrinks while it does not, separately for each class. On images of
    more than 32x32, mask and pattern are searched at that resolution and interpolated.

    Args:
        steps: Steps of Adam.
        batch: Images in a step for each class.
        most: Most images to optimise on, and most to measure on.
        learning_rate: Learning rate of the parameters of mask and pattern.
        least_success: Least success on a batch at which the weight of the mask's size grows.
    """

    name: ClassVar[str] = "inversion"
    paper: ClassVar[str] = "Wang et al., Neural Cleanse, IEEE S&P 2019"
    needs_images: ClassVar[bool] = True
    searches: ClassVar[bool] = True
    at_large_size: ClassVar[Mapping[str, float]] = {
        "steps": 40,
        "batch": 4,
        "most": 32,
        "learning_rate": 0.3,
    }

    steps: int = 120
    batch: int = 16
    most: int = 256
    learning_rate: float = 0.15
    least_success: float = 0.9

    def passes(self, subject: Subject) -> float:
        """See :meth:`Detector.passes`."""
        return len(subject.searched) * (TO_IMAGES * self.steps * self.batch + self.most)

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        learn, judge = subject.divided(self.most)
        with frozen(subject.model):
            parts = [self._smallest(part, learn) for part in subject.in_parts(self.batch)]
            masks, patterns = (torch.cat(each) for each in zip(*parts, strict=True))
            rates = success_rates(
                subject.model,
                judge,
                lambda images, place: _pasted(images, masks[place, None], patterns[place, None]),
                subject.searched,
                subject.device,
            )
        sizes = masks.sigmoid().sum((1, 2, 3)).cpu()
        # A mask that does not work counts as large.
        values = -(sizes / rates.clamp(min=1e-2)).log()
        score, place = outlier(values)
        target, mask, pattern = subject.searched[place], masks[place, None], patterns[place, None]
        height, width = judge.shape[2:]
        pixels = float(sizes[place]) * (height * width) / mask.numel()
        evidence = {"pixels": pixels, "success": float(rates[place]), "images": len(judge)}
        shown = of_other_classes(subject.model, judge, target, subject.device)
        drawn, covered = (resized(each, (height, width))[0].sigmoid().cpu() for each in (pattern, mask))
        return Scores(
            detector=self.name,
            score=score,
            target=target,
            per_class=subject.of_all(values),
            evidence=evidence,
            pictures={"mask": covered, "trigger": covered * drawn},
            examples=(shown, _pasted(shown, mask, pattern)),
            searched=subject.classes,
        )

    def _smallest(self, subject: Subject, learn: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters, before the sigmoid, of each class's smallest working patch, or of its last patch."""
        model, device, generator = subject.model, subject.device, subject.generator()
        classes = torch.tensor(subject.searched).to(device.torch)
        count, channels = len(classes), learn.shape[1]
        height, width = resolution((learn.shape[2], learn.shape[3]))
        masks = torch.full((count, 1, height, width), -1.0, device=device.torch, requires_grad=True)
        patterns = torch.zeros(count, channels, height, width, device=device.torch, requires_grad=True)
        optimizer = Adam([masks, patterns], lr=self.learning_rate, betas=(0.5, 0.9))
        weights = torch.full((count,), 1e-3, device=device.torch)
        kept_masks, kept_patterns = masks.detach().clone(), patterns.detach().clone()
        kept_sizes = torch.full((count,), float("inf"), device=device.torch)
        targets = classes.repeat_interleave(self.batch)
        for step in range(self.steps):
            index = torch.randint(len(learn), (self.batch,), generator=generator)
            seen = learn[index.to(device.torch, non_blocking=True)]
            answers = logits(model, _pasted(seen, masks, patterns), device)
            losses = F.cross_entropy(answers, targets, reduction="none").view(count, -1).mean(1)
            sizes = masks.sigmoid().sum((1, 2, 3))
            (losses + weights * sizes).sum().backward()  # type: ignore[no-untyped-call]
            works = (answers.argmax(1) == targets).view(count, -1).float().mean(1) >= self.least_success
            better = (works & (sizes < kept_sizes)) | kept_sizes.isinf()
            of_class = better.view(-1, 1, 1, 1)  # selected without a wait for the device
            kept_masks = torch.where(of_class, masks.detach(), kept_masks)
            kept_patterns = torch.where(of_class, patterns.detach(), kept_patterns)
            kept_sizes = torch.where(works, torch.minimum(sizes.detach(), kept_sizes), kept_sizes)
            weights = torch.where(works, weights * 1.15, weights / 1.15).clamp(1e-4, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            subject.report(step + 1, self.steps)
        return kept_masks, kept_patterns


def _pasted(images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """Every image with every class's patch, ``[K * N, C, H, W]``, grouped by class."""
    height, width = images.shape[2:]
    shown, drawn = (resized(each, (height, width)).sigmoid()[:, None] for each in (masks, patterns))
    return ((1.0 - shown) * images[None] + shown * drawn).flatten(0, 1)
