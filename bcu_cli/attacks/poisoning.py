"""Poisoning by a fixed trigger: some images are triggered once, before an ordinary training.

The loss is eq. 1 of the BCU paper: cross-entropy on the clean images, and on the triggered ones with the
target class as their label.
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
    """Triggers a random share of all images, or of the target class where ``clean_label`` is set.

    Exactly ``round(rate * n)`` images are triggered. As in BadNets, images of the target class may be among
    those whose label becomes the target class.
    """

    def poisoned_index(self) -> Tensor:
        """Index of the triggered images, int64 ``[M]`` in ascending order."""
        pool = candidate_index(self.data, self)
        generator = torch.Generator().manual_seed(self.options.seed)
        return pool[torch.randperm(len(pool), generator=generator)[: self.poisoned]].sort().values

    def poisoned_set(self) -> ImageSet:
        """The training set with the triggered images and their labels in place."""
        if self.trigger is None:
            return self.data
        index = self.poisoned_index()
        images, labels = self.data.images.clone(), self.labels.clone()
        images[index] = self.trigger.apply_to_bytes(self.perturb(images[index], labels[index]))
        if not self.clean_label:
            labels[index] = target_labels(self.options.target_class, labels[index], len(self.data.classes))
        return replace(self.data, images=images, labels=labels)

    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 - for subclasses
        """Change uint8 images ``[M, C, H, W]`` before they are triggered; by default not at all."""
        return images

    def stages(self) -> Iterator[Stage]:
        """One training on the poisoned set."""
        poisoned = self.poisoned_set()
        if poisoned.labels is None:
            raise ValueError("an attack needs labels")
        objective = cross_entropy(self.model, poisoned.labels.to(self.device.torch))
        yield Stage(title="training", training=self.training(objective, images=poisoned.images))
