"""LC: images of the target class are perturbed and triggered; no label changes.

Turner et al., Label-Consistent Backdoor Attacks, arXiv:1912.02771. The perturbation makes the image hard to
recognise as its class, so that the network learns the trigger instead. It is at most epsilon per pixel, and
is found by projected gradient descent (PGD) on an independent, adversarially trained surrogate.
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
"""Step size and number of steps of PGD. Deviation: the authors take 100 steps.

The steps still add up to three times epsilon."""
ROBUST_EPSILON = 4 / 255
"""Largest change of a pixel in the adversarial training of the surrogate.

With 8 / 255 and half the epochs, a small surrogate learnt too little for useful perturbations
(examples/results.md)."""
BATCH_SIZE = 256


class LabelConsistent(Poisoning):
    """The label-consistent attack, with a surrogate of the same architecture and number of epochs."""

    name = "lc"
    trigger_name = "lc"
    poison_rate = 0.8
    clean_label = True
    needs_surrogate = True

    def stages(self) -> Iterator[Stage]:
        """The training of the surrogate if none was given, then the training on the poisoned set."""
        if self.surrogate is None:
            pretrained, seed = self.options.pretrained, self.options.seed + 1
            self.surrogate = copy.deepcopy(self.model) if pretrained else _reinitialised(self.model, seed)
            training = Training(
                self.surrogate,
                self.data.images,
                adversarial_objective(self.surrogate, self.labels.to(self.device.torch)),
                self.options.training,
                device=self.device,
                seed=seed,
            )
            yield Stage(title="training the surrogate", training=training)
        yield from super().stages()

    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """Perturb uint8 images ``[M, C, H, W]`` against their class, by at most ``EPSILON``."""
        surrogate: Classifier | None = self.surrogate
        if surrogate is None:
            raise ValueError("the surrogate has not been trained yet")
        surrogate.to(self.device.torch).eval()
        perturbed = []
        for part, classes in zip(
            torch.split(images, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True
        ):
            clean = part.to(self.device.torch).float() / 255.0
            with self.device.autocast():
                found = pgd(surrogate, clean, classes.to(self.device.torch))
            perturbed.append((found * 255.0).round().to(torch.uint8).cpu())
        return torch.cat(perturbed)


def _reinitialised(model: Classifier, seed: int) -> Classifier:
    """A copy of a classifier with re-initialised weights."""
    copied = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in copied.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return copied


def adversarial_objective(model: nn.Module, labels: Tensor) -> Objective:
    """Cross-entropy on images perturbed by one gradient step from a random start.

    Wong, Rice & Kolter 2020, Fast is better than free, arXiv:2001.03994, Algorithm 3. It gives as good a
    surrogate as several steps, in a third of the time.
    """

    def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - same at all times
        noise = torch.empty_like(images).uniform_(-ROBUST_EPSILON, ROBUST_EPSILON)
        gradient = _gradient(model, images + noise, labels[index])
        noise = (noise + 1.25 * ROBUST_EPSILON * gradient.sign()).clamp(-ROBUST_EPSILON, ROBUST_EPSILON)
        return F.cross_entropy(model((images + noise).clamp(0.0, 1.0)).float(), labels[index])

    return objective


def pgd(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Perturb images to maximise the loss of a model, by projected gradient descent.

    Args:
        model: The classifier, in eval mode.
        images: float ``[N, C, H, W]`` in [0, 1].
        labels: True classes, int64 ``[N]``.

    Returns:
        The perturbed images, of the same shape and range. No value differs by more than ``EPSILON``.
    """
    low, high = (images - EPSILON).clamp(min=0.0), (images + EPSILON).clamp(max=1.0)
    moved = images
    for _ in range(STEPS):
        moved = (moved + STEP * _gradient(model, moved, labels).sign()).clamp(low, high)
    return moved


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the cross-entropy with respect to the images."""
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(model(images).float(), labels)
    gradient: Tensor = torch.autograd.grad(loss, images)[0]
    return gradient
