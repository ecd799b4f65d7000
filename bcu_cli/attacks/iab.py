"""IAB: a trigger for each image, drawn by networks trained with the classifier (arXiv:2010.08138)."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from bcu_cli.attacks.base import Attack
from bcu_cli.training.loop import Companion, Stage, Training
from bcu_cli.training.optimizers import Adam
from bcu_cli.triggers import iab
from bcu_cli.triggers.base import target_labels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from bcu_cli.training.loop import Objective

DENSITY = 0.032
"""Share of an image that the mask may cover at no cost."""
DENSITY_WEIGHT, DIVERSITY_WEIGHT = 100.0, 1.0
LEARNING_RATE, BETAS = 0.01, (0.5, 0.9)
"""Of Adam, for both networks of the trigger."""
CROSS_RATE = 0.1
"""Share of each batch that carries the trigger of another image."""
MASK_SHARE = 0.1
"""Epochs of the mask network alone, as a share of the others."""


class InputAware(Attack):
    """Nguyen & Tran 2020: first the mask network, then the pattern network and the classifier together.

    In each batch some images carry their own trigger and lead to the target (``poison_rate``); a tenth carry
    the trigger of another image and keep their label (cross-trigger mode), so that a trigger works on its own
    image only.

    Deviation: the mask network is trained for a tenth of the epochs, not for 25 before some hundreds.
    """

    name = "iab"
    trigger_name = "iab"

    def stages(self) -> Iterator[Stage]:
        """The training of the mask network, then that of everything else."""
        trigger = self.trigger
        if not isinstance(trigger, iab.InputAware):
            raise TypeError("IAB implants an IAB trigger")
        yield Stage(title="training the mask", training=self._of_mask(trigger))
        trigger.mask_network.eval()
        drawer = trigger.pattern_network
        companion = Companion(module=drawer, optimizer=_adam(drawer))
        training = self.training(self._objective(trigger), companions=[companion])
        yield Stage(title="training", training=training)

    def _of_mask(self, trigger: iab.InputAware) -> Training:
        """The training of the mask network: sparse, and another for another image."""
        network = trigger.mask_network

        def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - needs no labels
            masks = network.as_mask(images)
            seen = (images - self.model.mean) / self.model.std  # they differ as much as the network sees
            half = len(images) // 2
            norm = (masks - DENSITY).clamp(min=0.0).mean()
            alike = diversity_loss(seen[:half], seen[half : 2 * half], masks[:half], masks[half : 2 * half])
            return DENSITY_WEIGHT * norm + DIVERSITY_WEIGHT * alike

        how = self.options.training
        return Training(
            network,
            self.data.images,
            objective,
            replace(how, epochs=ceil(MASK_SHARE * how.epochs), ema=None),
            device=self.device,
            seed=self.options.seed + 1,
            optimizer=_adam(network),
        )

    def _objective(self, trigger: iab.InputAware) -> Objective:
        labels, rate = self.labels.to(self.device.torch), self.options.poison_rate

        def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
            most = len(images) // 3
            count = min(max(1, round(rate * len(images))), most)
            borrowing = min(max(1, round(CROSS_RATE * len(images))), most)
            classes = labels[index]
            own, crossed, rest = images.tensor_split([count, count + borrowing])
            lenders = rest[:borrowing]
            sources = torch.cat([own, lenders])
            patterns = trigger.pattern_network(sources)
            with torch.no_grad():
                masks = trigger.mask_network.as_mask(sources)
            views = torch.cat(
                [
                    iab.paste(own, patterns[:count], masks[:count]),
                    iab.paste(crossed, patterns[count:], masks[count:]),
                    rest,
                ]
            )
            wanted = target_labels(self.options.target_class, classes[:count], self.model.num_classes)
            answers = torch.cat([wanted, classes[count:]])
            pairs = min(count, borrowing)
            alike = diversity_loss(
                own[:pairs], lenders[:pairs], patterns[:pairs], patterns[count : count + pairs]
            )
            return F.cross_entropy(self.model(views).float(), answers) + DIVERSITY_WEIGHT * alike

        return objective


def diversity_loss(images: Tensor, others: Tensor, drawn: Tensor, drawn_for_others: Tensor) -> Tensor:
    """How alike what is drawn is for different images: the mean of |x - x'| / |g(x) - g(x')|.

    Args:
        images: float ``[N, C, H, W]``.
        others: As many other images.
        drawn: ``[N, D, H, W]``: patterns or masks for ``images``.
        drawn_for_others: The same for ``others``.
    """
    far = (images - others).square().mean((1, 2, 3)).sqrt()
    apart = ((drawn - drawn_for_others).square().mean((1, 2, 3)) + 1e-12).sqrt()
    return (far / (apart + 1e-3)).sum() / max(1, len(images))


def _adam(network: nn.Module) -> torch.optim.Optimizer:
    return Adam(network.parameters(), lr=LEARNING_RATE, betas=BETAS)
