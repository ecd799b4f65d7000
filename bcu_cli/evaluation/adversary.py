"""Universal and per-image changes that learn to make a network predict chosen classes.

For each class there is one change of each universal kind, the same for all images: a patch (a mask and a
pattern, as in Neural Cleanse), an additive universal perturbation within an L∞ ball, and a smooth warp (as in
WaNet). They learn by Adam to make a network predict the class. A fourth kind is computed for each image from
the gradient: the few pixels with the largest gradient are set to black or white. It represents triggers that
differ from image to image (as in IAB).

The gradient that the changes learn from never reaches the network's weights.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.training.inference import frozen
from bcu_cli.training.optimizers import Adam
from bcu_cli.triggers.wanet import grids, warp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bcu_cli.evaluation.measures import Proportion

UNIVERSAL = ("patch", "perturbation", "warp")
KINDS = (*UNIVERSAL, "pixels")
_PATCH, _PERTURBATION, _, _PIXELS = range(len(KINDS))
CONTROL_POINTS = 4
"""Control points of a warp along each side of the image."""
WEIGHT_FLOOR = 0.1
"""Floor of the sampling weight of a class that no change reached; a success of one half adds about 1."""
ODDS_SMOOTHING = 0.02
"""Smoothing term of the odds; caps them at 50."""
MAX_RESOLUTION = 32
"""Most rows and columns of masks, patterns and perturbations, whatever the size of the images.

So their memory does not grow with larger images. See :func:`perturbation` for what fills a larger image.
"""
OPAQUE, TRANSPARENT = 2.0, -1.0
"""Parameters of a mask where a patch starts and where it does not: it covers 99.8 % and 0.2 % there."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the changes.

    Args:
        patch: Largest share of the image that a patch covers, and share of the pixels that the fourth kind
            sets.
        perturbation: Largest change of a pixel by a universal perturbation, on a scale of 0 to 1.
        warp: Largest displacement of a control point, as a share of half the image's side: 0.125 is two
            pixels of 32.
    """

    patch: float
    perturbation: float
    warp: float

    def scaled(self, factor: float) -> Limits:
        """All limits, times a factor."""
        return Limits(**{name: factor * limit for name, limit in asdict(self).items()})


class Adversary(nn.Module):
    """Trainable changes of images, one of each universal kind for each target class.

    Args:
        targets: Target class of each change; a class that is named more than once has several changes.
        shape: Shape of the images, (C, H, W).
        limits: Limits of the changes.
        seed: Seed of the initial changes.

    Attributes:
        targets: Target class of each change, int64 ``[S]``; a *slot* is an index into it.
        sampling_weights: Sampling weight of each change by kind, float ``[S, len(KINDS)]``.
    """

    targets: Tensor
    sampling_weights: Tensor

    def __init__(
        self,
        targets: Sequence[int],
        shape: tuple[int, int, int],
        limits: Limits,
        *,
        seed: int,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        channels, height, width = shape
        rows, columns = resolution((height, width))
        count, limit = len(targets), limits.perturbation
        self.limits = limits
        self.size = (height, width)
        self.register_buffer("targets", torch.tensor(list(targets)))
        self.register_buffer("sampling_weights", torch.ones(count, len(KINDS)))

        def drawn(*size: int, within: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(count, *size).uniform_(-within, within, generator=generator))

        self.masks = drawn(1, rows, columns, within=0.1)
        self.patterns = drawn(channels, rows, columns, within=0.1)
        self.perturbations = drawn(*perturbation_shape(channels, self.size), within=limit / 2.0)
        self.fields = drawn(2, CONTROL_POINTS, CONTROL_POINTS, within=limits.warp / 2.0)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, with a learning rate for each kind that crosses its range in about twenty steps."""
        rates = {
            "masks": 0.15,
            "patterns": 0.15,
            "perturbations": self.limits.perturbation / 2.0,
            "fields": 0.03,
        }
        groups = [{"params": [getattr(self, name)], "lr": rate} for name, rate in rates.items()]
        return Adam(groups, betas=(0.5, 0.9))

    def forward(self, images: Tensor, slots: Tensor, counts: list[int]) -> Tensor:
        """The changed images; those of the fourth kind stay as they are.

        Args:
            images: Float ``[N, C, H, W]`` in [0, 1].
            slots: Slot of the change for each image, int64 ``[N]``.
            counts: Number of images for each of ``KINDS``: the first ``counts[0]`` get patches, the next
                ``counts[1]`` perturbations, and so on. So no index has to be sent to the device.
        """
        parts = zip(torch.split(images, counts), torch.split(slots, counts), strict=True)
        return torch.cat([self._apply_kind(kind, *part) for kind, part in enumerate(parts)])

    def attack(self, network: nn.Module, images: Tensor, kinds: int = len(KINDS)) -> tuple[Tensor, Tensor]:
        """Change images towards target classes, and compute the gradient that improves the changes.

        Kinds are drawn uniformly, target classes in proportion to ``sampling_weights``.

        Args:
            network: Maps images in [0, 1] to logits; evaluated in eval mode and left unchanged.
            images: Float ``[N, C, H, W]`` in [0, 1], in random order.
            kinds: Number of ``KINDS`` to use, from the first.

        Returns:
            The changed images without a gradient, and a surrogate loss to be added to a loss. Its value is
            0, and its gradient by the changes' parameters is that of the cross-entropy to the targets.
        """
        self._clamp_parameters()
        counts = torch.bincount(torch.randint(kinds, (len(images),)), minlength=len(KINDS)).tolist()
        drawn = [
            torch.multinomial(weights, count, True)
            for weights, count in zip(self.sampling_weights.t(), counts, strict=True)
            if count
        ]
        slots = torch.cat(drawn)
        parameters = list(self.parameters())
        seen = images.detach().requires_grad_()
        with frozen_in_eval(network), torch.enable_grad():
            changed = self(seen, slots, counts)
            logits = network(changed.contiguous(memory_format=torch.channels_last))
            loss = self._loss(network, images, logits, slots)
            *gradients, of_images = torch.autograd.grad(loss, [*parameters, seen], allow_unused=True)
        products = zip(parameters, gradients, strict=True)
        surrogate = torch.as_tensor(sum((p * g).sum() for p, g in products if g is not None))
        universal = len(images) - counts[_PIXELS]
        saturated = _saturate_pixels(images[universal:], of_images[universal:], self.limits.patch)
        return torch.cat([changed[:universal].detach(), saturated]), surrogate - surrogate.detach()

    @torch.no_grad()
    def start_patch(self, slot: int, pixels: Tensor, top: int, left: int) -> None:
        """Start the patch of a slot at a given one instead of at random, as closely as its resolution allows.

        Args:
            slot: The slot.
            pixels: The patch, float ``[C, h, w]`` in [0, 1].
            top: First row of the patch.
            left: First column of the patch.
        """
        place = (slice(top, top + pixels.shape[1]), slice(left, left + pixels.shape[2]))
        mask, pattern = torch.zeros(1, *self.size), torch.zeros(len(pixels), *self.size)
        mask[:, *place], pattern[:, *place] = 1.0, pixels
        mask, pattern = (F.adaptive_avg_pool2d(each, resolution(self.size)) for each in (mask, pattern))
        covered = (mask > mask.max() / 2.0).to(self.masks.device)  # at least one cell, however small it is
        logits = torch.logit((pattern / mask.clamp(min=1e-6)).clamp(0.01, 0.99)).to(self.patterns.device)
        self.masks[slot] = torch.where(covered, OPAQUE, TRANSPARENT)
        self.patterns[slot] = torch.where(covered, logits / 2.0, self.patterns[slot])

    def set_sampling_weights(self, successes: Mapping[tuple[str, int], Proportion]) -> None:
        """Sample each universal change in proportion to the odds of its success so far.

        For most classes such a change succeeds on 60 to 90 % of the images, for the target of a backdoor on
        nearly all. So about half of the draws of a kind go to that target.

        Args:
            successes: Success by universal kind and target class; a missing one counts as 0.
        """
        self.sampling_weights[:, : len(UNIVERSAL)] = WEIGHT_FLOOR
        slots = {target: slot for slot, target in enumerate(self.targets.tolist())}
        for (kind, target), success in successes.items():
            self.sampling_weights[slots[target], KINDS.index(kind)] += odds(success)

    def _loss(self, network: nn.Module, images: Tensor, logits: Tensor, slots: Tensor) -> Tensor:  # noqa: ARG002 - for subclasses
        """The loss of the changed images, summed: the cross-entropy to the target classes."""
        return F.cross_entropy(logits.float(), self.targets[slots], reduction="sum")

    def _apply_kind(self, kind: int, images: Tensor, slots: Tensor) -> Tensor:
        if kind == _PIXELS or not len(images):
            return images
        if kind == _PATCH:
            masks, patterns = self._patches(slots)
            return torch.lerp(images, patterns, masks.expand_as(patterns))
        if kind == _PERTURBATION:
            limit = self.limits.perturbation
            added = perturbation(_within(_rows(self.perturbations, slots), limit), self.size, limit)
            return (images + added).clamp(0.0, 1.0)
        return warp(images, grids(_within(_rows(self.fields, slots), self.limits.warp), self.size))

    def _patches(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Masks ``[N, 1, H, W]`` and patterns ``[N, C, H, W]`` in [0, 1].

        On large images they are of small squares with sharp edges, as attackers' patches are.
        """
        masks, patterns = (
            F.interpolate(_rows(each, slots), size=self.size, mode="nearest")
            for each in (self.masks, self.patterns)
        )
        masks, patterns = torch.sigmoid(4.0 * masks - 2.0), torch.sigmoid(2.0 * patterns)
        share = masks.mean((1, 2, 3), keepdim=True)
        return masks * (self.limits.patch / share).clamp(max=1.0), patterns

    @torch.no_grad()
    def _clamp_parameters(self) -> None:
        self.perturbations.clamp_(-self.limits.perturbation, self.limits.perturbation)
        self.fields.clamp_(-self.limits.warp, self.limits.warp)


def _rows(parameters: Tensor, slots: Tensor) -> Tensor:
    """``parameters[slots]`` with a deterministic gradient on the CPU.

    Plain indexing adds gradients up from all threads at once, in whatever order they arrive.
    """
    return parameters.index_select(0, slots)


def _within(values: Tensor, limit: float) -> Tensor:
    """Values clamped to an absolute limit; those that are clamped keep their gradient."""
    return values + (values.clamp(-limit, limit) - values).detach()


def resolution(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the parameters of a change, for images of a height and width."""
    return min(size[0], MAX_RESOLUTION), min(size[1], MAX_RESOLUTION)


def resized(parameters: Tensor, size: tuple[int, int]) -> Tensor:
    """Parameters ``[N, C, h, w]``, interpolated to the height and width of the images."""
    if parameters.shape[2:] == size:
        return parameters
    return F.interpolate(parameters, size=size, mode="bilinear")


def perturbation_shape(channels: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """Shape of the parameters of a :func:`perturbation` of images of a height and width."""
    rows, columns = resolution(size)
    return (channels if (rows, columns) == size else 2 * channels), rows, columns


def perturbation(parameters: Tensor, size: tuple[int, int], limit: float) -> Tensor:
    """Perturbations ``[N, C, H, W]`` within an L∞ ball.

    On large images a coarse pattern, which is interpolated, and a fine one, which is repeated like tiles, are
    added: the first one has no detail of the size of a pixel, the second one only that.

    Args:
        parameters: Float ``[N, *perturbation_shape(C, (H, W))]`` within the limit.
        size: Height and width of the images.
        limit: Largest absolute value.
    """
    if parameters.shape[2:] == size:
        return parameters
    coarse, fine = parameters.chunk(2, dim=1)
    repeats = [-(-whole // part) for whole, part in zip(size, parameters.shape[2:], strict=True)]
    added = resized(coarse, size) + fine.repeat(1, 1, *repeats)[..., : size[0], : size[1]]
    return _within(added, limit)


def odds(success: Proportion) -> float:
    """Smoothed odds of a success, from 0 to 50."""
    return success.value / (1.0 + ODDS_SMOOTHING - success.value)


def _saturate_pixels(images: Tensor, gradients: Tensor, share: float) -> Tensor:
    """Set the pixels with the largest gradients to black or white, whichever lowers the loss."""
    weights = gradients.abs().sum(1).flatten(1)
    most = weights.topk(max(1, int(share * weights.shape[1])), dim=1).indices
    hit = torch.zeros_like(weights).scatter_(1, most, 1.0).view(len(images), 1, *images.shape[2:])
    return torch.where(hit > 0, (gradients < 0).to(images.dtype), images)


@contextmanager
def frozen_in_eval(network: nn.Module) -> Iterator[None]:
    """Keep a network in eval mode, without gradients for its weights, while the context lasts."""
    trained = network.training
    network.eval()
    try:
        with frozen(network):
            yield
    finally:
        network.train(trained)
