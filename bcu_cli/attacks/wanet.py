"""WaNet: a warping trigger, learnt beside warps that must do nothing (arXiv:2102.10369)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from bcu_cli.attacks.base import Attack
from bcu_cli.images.augmentation import NO_AUGMENTATION, Augmentation, augment
from bcu_cli.training.loop import Stage
from bcu_cli.triggers import wanet
from bcu_cli.triggers.base import target_labels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

NOISE_PER_POISONED = 2
"""Images in noise mode for each in attack mode (the paper's 0.2 and 0.1)."""


class WaNet(Attack):
    """Nguyen & Tran 2021: in each batch some images are in attack mode, some in noise mode, the rest clean.

    Noise mode warps by the trigger's field plus uniform noise of half a pixel of 32, and keeps the label: it
    makes the network learn this very field, not just any warp. The images are warped first and augmented
    then: the other way round the edges that a crop or a turn leaves would give the warp away, and the network
    would learn nothing that is there on a whole image (measured: examples/results.md).
    """

    name = "wanet"
    trigger_name = "wanet"
    augmentation = Augmentation(crop_padding=5, flip=False, rotation=10.0)

    def stages(self) -> Iterator[Stage]:
        """One training, poisoned inside its loop."""
        trigger = self.trigger
        if not isinstance(trigger, wanet.WaNet):
            raise TypeError("WaNet implants a WaNet trigger")
        labels, rate = self.labels.to(self.device.torch), self.options.poison_rate
        how = self.options.training

        def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
            attacked = max(1, round(rate * len(images)))
            noisy = min(NOISE_PER_POISONED * attacked, len(images) - attacked)
            classes = labels[index]
            grid = trigger.grid(images)
            views = torch.cat(
                [
                    wanet.warp(images[:attacked], grid),
                    _warp_noisily(images[attacked : attacked + noisy], grid),
                    images[attacked + noisy :],
                ]
            )
            views = augment(views, how.augmentation, torch.default_generator)
            wanted = target_labels(self.options.target_class, classes[:attacked], self.model.num_classes)
            return F.cross_entropy(self.model(views).float(), torch.cat([wanted, classes[attacked:]]))

        unaugmented = replace(how, augmentation=NO_AUGMENTATION)
        yield Stage(title="training", training=self.training(objective, options=unaugmented))


def _warp_noisily(images: Tensor, grid: Tensor) -> Tensor:
    """Warp each image by the grid plus noise of its own, up to half a pixel of 32."""
    noise = torch.rand(len(images), *grid.shape[1:], device=images.device) * 2.0 - 1.0
    return wanet.warp(images, (grid + noise / 32.0).clamp(-1.0, 1.0))
