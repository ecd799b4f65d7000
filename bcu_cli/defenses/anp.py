"""Adversarial neuron pruning: channels whose small perturbation makes the network fail are pruned.

Wu & Wang, Adversarial Neuron Pruning Purifies Backdoored Deep Models, NeurIPS 2021, arXiv:2110.14430. Each
channel has a mask in [0, 1] on its weights. The masks are trained on two losses. The clean loss has the
weight ``alpha``. The loss under the worst relative perturbation of weights and biases within ``epsilon`` has
the weight ``1 - alpha``. One step of the gradient's sign from a random start finds that perturbation.
Channels whose mask is below ``threshold`` are pruned. The masks get 2,000 steps of SGD with a learning rate
of 0.2, a momentum of 0.9 and batches of 128; no other weight is trained. BatchNorms normalise by the
statistics of the batch, as in the authors' code, which cancels most of the effect of a perturbation of all
channels on later layers. (With fixed statistics an epsilon of 0.4 makes all outputs useless, and the masks
close on half of the channels.) The network's running statistics do not change.

Deviations: a perturbation never exceeds ``epsilon``; the authors' code does not clip it. Images are not
augmented, while the authors' are cropped and mirrored at random. Each image is used once an epoch, and the
number of epochs is the smallest that gives the steps. A channel's mask scales the weight of the norm behind
its convolution, or of the convolution itself where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from bcu_cli.defenses.base import Defense, DefenseOptions, require
from bcu_cli.images.augmentation import NO_AUGMENTATION
from bcu_cli.models.channels import BATCH_NORMS, Channels, find_channels, pruned_report
from bcu_cli.training.loop import Stage, Training
from bcu_cli.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AnpOptions(DefenseOptions):
    """Options of method ``anp``; the defaults are the paper's.

    Args:
        epsilon: Largest perturbation of a channel, relative to its weights.
        alpha: Weight of the loss without a perturbation, in [0, 1].
        threshold: Channels whose mask is below this are pruned; the authors' code tries 0.05 to 0.95.
        steps: Steps of the masks' training.
        batch_size: Most images in a step.
        learning_rate: Constant learning rate of the masks.
        momentum: Momentum of SGD.
    """

    epsilon: float = 0.4
    alpha: float = 0.2
    threshold: float = 0.2
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epsilon >= 0, f"an epsilon of {self.epsilon:g} makes no sense", "--setting epsilon=0.4")
        require(0 <= self.alpha <= 1, f"an alpha of {self.alpha:g} is no share", "--setting alpha=0.2")
        require(
            0 <= self.threshold <= 1,
            f"a threshold of {self.threshold:g} is no mask's value",
            "--setting threshold=0.2",
        )
        require(self.steps >= 1, f"{self.steps} steps learn nothing", "--setting steps=2000")


class AdversarialNeuronPruning(Defense[AnpOptions]):
    """The method of Wu & Wang 2021."""

    name = "anp"
    paper = "Wu & Wang, Adversarial Neuron Pruning, NeurIPS 2021"
    variant = "images are not augmented, and perturbations are clipped"
    Options: ClassVar[type[DefenseOptions]] = AnpOptions

    masks: list[Tensor]
    pruned: list[tuple[Channels, Tensor]]

    def stages(self) -> Iterator[Stage]:
        """Train the masks, then prune the channels with low masks."""
        options = self.options
        layers = find_channels(self.student.network, self.example())
        self.student.to(self.device.torch).requires_grad_(False)
        masks = Masks(self.student, layers)
        images, steps_per_epoch = self.data.images, ceil(len(self.data) / options.batch_size)
        how = TrainingOptions(
            epochs=ceil(options.steps / steps_per_epoch),
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            schedule="constant",
            momentum=options.momentum,
            weight_decay=0.0,
            augmentation=NO_AUGMENTATION,
        )
        labels = self.labels

        def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
            return masks.loss(views, labels[index], options)

        training = Training(masks, images, objective, how, device=self.device, seed=options.seed)
        yield Stage(title="training the masks", training=training)
        self.masks = [mask.detach().clamp(0.0, 1.0).cpu() for mask in masks.values]
        self.pruned = []
        for channels, mask in zip(layers, self.masks, strict=True):
            index = (mask < options.threshold).nonzero()[:, 0]
            channels.zero_scale(index)
            self.pruned.append((channels, index))

    def details(self) -> dict[str, Any]:
        """The channels that were pruned."""
        return {"pruned": pruned_report(self.pruned)}


class Masks(nn.Module):
    """A mask for each channel of a network that is not itself a submodule.

    In train mode its BatchNorms use the statistics of the batch, and their running statistics do not change.

    Args:
        student: The classifier, in eval mode.
        layers: The channels of its network.
    """

    def __init__(self, student: nn.Module, layers: Sequence[Channels]) -> None:
        super().__init__()
        self.values = nn.ParameterList(torch.ones(channels.count) for channels in layers)
        parameters = dict(student.named_parameters())
        names = [(f"network.{c.weight_name}", c.bias_name and f"network.{c.bias_name}") for c in layers]
        self._student = [student]  # in a list, so that it is not registered, trained or kept with the masks
        self._weights = [(weight, parameters[weight]) for weight, _ in names]
        self._biases = [(bias, parameters[bias]) if bias else None for _, bias in names]
        self._norms = [module for module in student.modules() if isinstance(module, BATCH_NORMS)]
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode of the masks and of the network's BatchNorms, not of its other layers."""
        for norm in self._norms:
            norm.train(mode)
        return super().train(mode)

    def loss(self, images: Tensor, labels: Tensor, options: AnpOptions) -> Tensor:
        """The loss of the masks (Eq. 5); values outside [0, 1] are clipped first."""
        with torch.no_grad():
            for mask in self.values:
                mask.clamp_(0.0, 1.0)
        masks = list(self.values)
        natural = self.cross_entropy(images, labels, masks, None)
        perturbation = self.worst_perturbation(images, labels, options.epsilon)
        count = len(masks)
        perturbed = [mask + delta for mask, delta in zip(masks, perturbation[:count], strict=True)]
        robust = self.cross_entropy(images, labels, perturbed, perturbation[count:])
        return options.alpha * natural + (1.0 - options.alpha) * robust

    def worst_perturbation(self, images: Tensor, labels: Tensor, epsilon: float) -> list[Tensor]:
        """The worst perturbations ``[C]`` within ``epsilon``: first of all masks, then of all biases."""
        masks = [mask.detach() for mask in self.values]
        start = [torch.empty_like(mask).uniform_(-epsilon, epsilon).requires_grad_() for mask in masks * 2]
        deltas, bias_deltas = start[: len(masks)], start[len(masks) :]
        perturbed = [mask + delta for mask, delta in zip(masks, deltas, strict=True)]
        loss = self.cross_entropy(images, labels, perturbed, bias_deltas)
        gradients = torch.autograd.grad(loss, start, allow_unused=True)  # None for a layer without biases
        return [
            (each if gradient is None else each + epsilon * gradient.sign()).detach().clamp(-epsilon, epsilon)
            for each, gradient in zip(start, gradients, strict=True)
        ]

    def cross_entropy(
        self, images: Tensor, labels: Tensor, scales: Sequence[Tensor], bias_deltas: Sequence[Tensor] | None
    ) -> Tensor:
        """The loss with each channel's weights times ``scale`` and its bias times ``1 + delta``."""
        weights = {
            name: weight * scale.view(-1, *[1] * (weight.dim() - 1))
            for (name, weight), scale in zip(self._weights, scales, strict=True)
        }
        biases = {
            bias[0]: bias[1] * (1.0 + delta)
            for bias, delta in zip(self._biases, bias_deltas or [], strict=bias_deltas is not None)
            if bias
        }
        # Copies, since BatchNorms write to their buffers.
        buffers = {name: buffer.clone() for name, buffer in self._student[0].named_buffers()}
        logits: Tensor = functional_call(self._student[0], weights | biases | buffers, (images,))
        return F.cross_entropy(logits.float(), labels)
