"""The classes that detectors search, where there are too many to search all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Self

import torch

from bcu_cli.detectors.input_optimisation import batches, logits
from bcu_cli.evaluation.adversary import KINDS, UNIVERSAL, Limits
from bcu_cli.evaluation.class_screening import MOST_CLASSES, UntargetedAdversary, candidates
from bcu_cli.training.forecast import FORWARD, TO_IMAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bcu_cli.detectors.base import Scores, Subject

TITLE = "screening classes"
LIMITS = Limits(patch=0.03, perturbation=0.06, warp=0.125)
"""Limits of the changes that turn images away from their class; those of method ``auto``."""
FEWEST_SEARCHED, FEWEST_CONTROLS = 16, 8
"""Fewest classes that are searched of a screened network, and fewest of them that are drawn at random."""
_MOST_PIXELS = MOST_CLASSES * 32 * 32
"""Most pixels of one image of each searched class, if these are more than ``FEWEST_SEARCHED``."""


def most_searched(subject: Subject) -> int:
    """Most classes to search: 64 with images of 32x32 or less, and 16 with images of 64x64 or more."""
    fitting = _MOST_PIXELS // prod(subject.model.preprocessing.input_size[1:])
    return min(max(FEWEST_SEARCHED, fitting), MOST_CLASSES)


def is_needed(subject: Subject) -> bool:
    """Whether the network has more classes than are searched."""
    return subject.model.num_classes > most_searched(subject)


@dataclass(frozen=True, kw_only=True)
class Screening:
    """The choice of classes: those that stand out without a search or are reached by untargeted changes.

    Random classes are added, to compare with.

    Args:
        starts: Changes of each kind that are trained from different initial values.
        steps: Steps of the training.
        batch: Images in a step.
        most: Most images to train on, and most to measure on.
    """

    starts: int = 8
    steps: int = 60
    batch: int = 64
    most: int = 200

    def sized(self, subject: Subject) -> Self:
        """The screening with fewer steps and images for large images."""
        return replace(self, starts=4, steps=30, batch=16, most=16) if subject.large else self

    def passes(self, subject: Subject) -> float:
        """Passes of images through the network; 0 without images."""
        if subject.images is None:
            return 0.0
        return (FORWARD + TO_IMAGES) * self.steps * self.batch + self.starts * len(UNIVERSAL) * self.most

    def choose(self, subject: Subject, scores: Sequence[Scores]) -> tuple[int, ...]:
        """The classes to search, in ascending order.

        Args:
            subject: The network, with or without images.
            scores: Results of the detectors that search nothing; those that rank classes take part.
        """
        rankings = [each.per_class for each in scores if each.target is not None]
        if subject.images is not None:
            rankings += self._reached(subject)
        else:
            subject.report(1, 1)
        most = most_searched(subject)
        controls = max(FEWEST_CONTROLS, 3 * most // 8)
        if not rankings:
            rankings, controls = [torch.zeros(subject.model.num_classes)], most
        return tuple(candidates(torch.stack(rankings), subject.seed, most=most, controls=controls))

    def _reached(self, subject: Subject) -> list[Tensor]:
        """The largest share of images that a change of each kind sends to each class, ``[K]`` for each."""
        device, network = subject.device, subject.model
        learn, judge = subject.divided(self.most)
        shape = network.preprocessing.input_size
        adversary = UntargetedAdversary(shape, LIMITS, seed=subject.seed, starts=self.starts)
        adversary.to(device.torch)
        optimizer, generator = adversary.optimizer(), subject.generator()
        cuda = [device.torch] if device.torch.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(subject.seed)
            for step in range(self.steps):
                index = torch.randint(len(learn), (self.batch,), generator=generator)
                with device.autocast():
                    seen = learn[index.to(device.torch, non_blocking=True)]
                    _, surrogate = adversary.attack(network, seen, len(UNIVERSAL))
                surrogate.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                subject.report(step + 1, self.steps)
        return [self._success(subject, adversary, judge, kind) for kind in range(len(UNIVERSAL))]

    @torch.no_grad()
    def _success(self, subject: Subject, adversary: UntargetedAdversary, images: Tensor, kind: int) -> Tensor:
        """The largest share of the images of other classes that changes of a kind send to each class."""
        count, device = subject.model.num_classes, subject.device
        before = logits(subject.model, images, device).argmax(1)
        others = (len(before) - torch.bincount(before, minlength=count)).clamp(min=1)
        counts = [len(images) if each == kind else 0 for each in range(len(KINDS))]
        best = torch.zeros(count)
        for slot in range(self.starts):
            slots = torch.full((len(images),), slot, device=device.torch)
            changed = adversary(images, slots, counts)
            after = torch.cat([logits(subject.model, part, device).argmax(1) for part in batches(changed)])
            hits = torch.bincount(after[after != before], minlength=count)
            best = torch.maximum(best, (hits / others).cpu())
        return best
