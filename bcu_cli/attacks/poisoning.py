"""Poisoning by a fixed trigger: some training images are triggered once, before an ordinary training.

Eq. 1 of the BCU paper: cross-entropy on the clean images and, with the target class as their label, on the
triggered ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from bcu_cli.attacks.base import Attack, candidate_index
from bcu_cli.training.loop import Stage
from bcu_cli.training.objectives import cross_entropy
from bcu_cli.triggers.base import target_labels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from bcu_cli.images.folder import ImageSet


class Poisoning(Attack):
    """Triggers a random share of the images: of all, or of the target class where ``clean_label``.

    The number is exact: ``round(rate * n)``. Images whose label is changed are drawn from all classes, those
    of the target class among them, as in BadNets.
    """

    def poisoned_index(self) -> Tensor:
        """The triggered images, int64 ``[M]`` in ascending order."""
        pool = candidate_index(self.data, self)
        generator = torch.Generator().manual_seed(self.options.seed)
        return pool[torch.randperm(len(pool), generator=generator)[: self.poisoned]].sort().values

    def poisoned_set(self) -> ImageSet:
        """The training set with its triggered images and their labels."""
        if self.trigger is None:
            return self.data
        index = self.poisoned_index()
        images, labels = self.data.images.clone(), self.labels.clone()
        images[index] = self.trigger.apply_to_bytes(self.disturb(images[index], labels[index]))
        if not self.clean_label:
            labels[index] = target_labels(self.options.target_class, labels[index], len(self.data.classes))
        return replace(self.data, images=images, labels=labels)

    def disturb(self, images: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 - for subclasses
        """What is done to uint8 images ``[M, C, H, W]`` before they are triggered: nothing."""
        return images

    def stages(self) -> Iterator[Stage]:
        """One training on the poisoned set."""
        poisoned = self.poisoned_set()
        if poisoned.labels is None:
            raise ValueError("an attack needs labels")
        objective = cross_entropy(self.model, poisoned.labels.to(self.device.torch))
        yield Stage(title="training", training=self.training(objective, images=poisoned.images))
