"""LC: triggered images of the target class are first made hard to learn by anything but their trigger.

Turner et al., Label-Consistent Backdoor Attacks, arXiv:1912.02771: a perturbation of at most
epsilon, found by projected gradient descent (PGD) on an independent, adversarially trained classifier, takes
the image away from its class. No label changes.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from bcu_cli.attacks.poisoning import Poisoning
from bcu_cli.training.loop import Stage, Training

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Objective

EPSILON = 16 / 255
"""Largest change of a pixel (BCU paper, supplement A)."""
STEP, STEPS = 1.5 / 255, 30
"""Of PGD. Deviation: 30 steps for the authors' 100; together they still go three times as far as epsilon."""
ROBUST_EPSILON = 4 / 255
"""Largest change of a pixel in the surrogate's own adversarial training. With 8, and half the
epochs, a small one learnt too little to take an image from its class (examples/results.md)."""
BATCH_SIZE = 256


class LabelConsistent(Poisoning):
    """Turner et al. 2019, with a surrogate of the same architecture that is trained for as long."""

    name = "lc"
    trigger_name = "lc"
    poison_rate = 0.8
    clean_label = True
    needs_surrogate = True

    def stages(self) -> Iterator[Stage]:
        """The training of the surrogate, where none was given, then that on the poisoned set."""
        if self.surrogate is None:
            self.surrogate = _anew(self.model, self.options.seed + 1)
            training = Training(
                self.surrogate,
                self.data.images,
                adversarial_objective(self.surrogate, self.labels.to(self.device.torch)),
                self.options.training,
                device=self.device,
                seed=self.options.seed + 1,
            )
            yield Stage(title="training the surrogate", training=training)
        yield from super().stages()

    def disturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take uint8 images ``[M, C, H, W]`` away from their class, by at most ``EPSILON``."""
        surrogate: Classifier | None = self.surrogate
        if surrogate is None:
            raise ValueError("the surrogate has not been trained yet")
        surrogate.to(self.device.torch).eval()
        disturbed = []
        for part, classes in zip(
            torch.split(images, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True
        ):
            clean = part.to(self.device.torch).float() / 255.0
            with self.device.autocast():
                found = perturb(surrogate, clean, classes.to(self.device.torch))
            disturbed.append((found * 255.0).round().to(torch.uint8).cpu())
        return torch.cat(disturbed)


def _anew(model: Classifier, seed: int) -> Classifier:
    """A copy of a classifier with other random weights."""
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return fresh


def adversarial_objective(model: nn.Module, labels: Tensor) -> Objective:
    """Cross-entropy on images moved against the model by one step from a random start.

    Wong, Rice & Kolter 2020, Fast is better than free, arXiv:2001.03994, Algorithm 3: as good a surrogate as
    several steps make, for a third of the time.
    """

    def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - same at all times
        noise = torch.empty_like(images).uniform_(-ROBUST_EPSILON, ROBUST_EPSILON)
        gradient = _gradient(model, images + noise, labels[index])
        noise = (noise + 1.25 * ROBUST_EPSILON * gradient.sign()).clamp(-ROBUST_EPSILON, ROBUST_EPSILON)
        return F.cross_entropy(model((images + noise).clamp(0.0, 1.0)).float(), labels[index])

    return objective


def perturb(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """PGD: images that the model takes for their class as little as it can.

    Args:
        model: In eval mode.
        images: float ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``.

    Returns:
        The same shape and range, no value further than ``EPSILON`` from ``images``.
    """
    low, high = (images - EPSILON).clamp(min=0.0), (images + EPSILON).clamp(max=1.0)
    moved = images
    for _ in range(STEPS):
        moved = (moved + STEP * _gradient(model, moved, labels).sign()).clamp(low, high)
    return moved


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of the cross-entropy, by the images."""
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(model(images).float(), labels)
    gradient: Tensor = torch.autograd.grad(loss, images)[0]
    return gradient
