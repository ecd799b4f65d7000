"""WaNet: a warping trigger, learnt beside other warps that must not trigger (arXiv:2102.10369)."""

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
"""Images in noise mode for each image in attack mode; the paper's rates are 0.2 and 0.1."""


class WaNet(Attack):
    """Triggers a share of each batch (attack mode) and warps a second share otherwise (noise mode).

    Noise mode warps by the trigger's field plus uniform noise of up to half a pixel on images of 32 pixels,
    and keeps the label. So the network learns this field, and not just any warp.

    The images are warped first and augmented afterwards. In the reverse order the warp would show at the
    edges that a crop or a rotation leaves, and the network would not learn it on whole images (measured:
    examples/results.md).
    """

    name = "wanet"
    trigger_name = "wanet"
    augmentation = Augmentation(crop_padding=5, flip=False, rotation=10.0)

    def stages(self) -> Iterator[Stage]:
        """One training, in which each batch is poisoned."""
        trigger = self.trigger
        if not isinstance(trigger, wanet.WaNet):
            raise TypeError("WaNet implants a WaNet trigger")
        labels, rate = self.labels.to(self.device.torch), self.options.poison_rate
        options = self.options.training

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
            views = augment(views, options.augmentation, torch.default_generator)
            targets = target_labels(self.options.target_class, classes[:attacked], self.model.num_classes)
            return F.cross_entropy(self.model(views).float(), torch.cat([targets, classes[attacked:]]))

        unaugmented = replace(options, augmentation=NO_AUGMENTATION)
        yield Stage(title="training", training=self.training(objective, options=unaugmented))


def _warp_noisily(images: Tensor, grid: Tensor) -> Tensor:
    """Warp each image by the grid plus independent noise, of up to half a pixel on images of 32 pixels."""
    noise = torch.rand(len(images), *grid.shape[1:], device=images.device) * 2.0 - 1.0
    return wanet.warp(images, (grid + noise / 32.0).clamp(-1.0, 1.0))
