"""What looks for the ways in which all images can be led to a class, and changes images that way.

For each class there is one change of each kind that is the same for all images: a patch (a mask and a
pattern, as Neural Cleanse seeks it), a shift of all pixels within an L∞ ball (universal adversarial
perturbation), and a smooth warp (WaNet's kind of trigger). They learn by Adam to make a network answer the
class. A fourth kind is drawn for each image from the gradient: its few pixels that matter most go to black or
white; it stands for triggers that differ from image to image (IAB's kind).

The gradient that the changes learn from never reaches the network's weights.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
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

UNIVERSAL = ("patch", "shift", "warp")
KINDS = (*UNIVERSAL, "pixels")
_PATCH, _SHIFT, _, _PIXELS = range(len(KINDS))
CONTROL_POINTS = 4
"""Along each side of a warp."""
SELDOM = 0.1
"""How often images are led where no change led them, relative to where one led half of them."""
MISSED = 0.02
"""Of the images at least, in the odds of a change; so these are 50 at most."""
MOST_NUMBERS = 100_000_000
"""Of all changes together; where all classes would need more, as many classes are drawn as fit."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far images may be changed.

    Args:
        patch: Share of the image that a patch covers, and share of the pixels that the fourth kind sets.
        shift: Of each pixel, on a scale of 0 to 1.
        warp: Of each control point, as a share of half the image's side: 0.125 is two pixels of 32.
    """

    patch: float
    shift: float
    warp: float


class Adversary(nn.Module):
    """Changes of images, one of each universal kind for each class that it leads to.

    Args:
        classes: Of the networks that it will be turned against.
        shape: Of the images, (C, H, W).
        limits: How far it may go.
        seed: Decides how the changes start, and which classes where there are too many.
        targets: The class of each change, a class several times where it is to start in several ways. None is
            each class once, or as many drawn at random as ``MOST_NUMBERS`` allow.
    """

    wanted: Tensor
    pull: Tensor

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        limits: Limits,
        *,
        seed: int,
        targets: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        channels, height, width = shape
        if targets is None:
            most = max(1, MOST_NUMBERS // ((2 * channels + 1) * height * width))
            targets = torch.randperm(classes, generator=generator)[:most].sort().values.tolist()
        count = len(targets)
        self.limits = limits
        self.size = (height, width)
        self.register_buffer("wanted", torch.tensor(targets))
        self.register_buffer("pull", torch.ones(count, len(KINDS)))

        def drawn(*size: int, within: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(count, *size).uniform_(-within, within, generator=generator))

        self.masks = drawn(1, height, width, within=0.1)
        self.patterns = drawn(channels, height, width, within=0.1)
        self.shifts = drawn(channels, height, width, within=limits.shift / 2.0)
        self.fields = drawn(2, CONTROL_POINTS, CONTROL_POINTS, within=limits.warp / 2.0)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, each kind at a pace that crosses its range in some twenty steps."""
        pace = {"masks": 0.15, "patterns": 0.15, "shifts": self.limits.shift / 2.0, "fields": 0.03}
        groups = [{"params": [getattr(self, name)], "lr": rate} for name, rate in pace.items()]
        return Adam(groups, betas=(0.5, 0.9))

    def forward(self, images: Tensor, slots: Tensor, counts: list[int]) -> Tensor:
        """The images, changed; those of the fourth kind are left as they are.

        Args:
            images: Float ``[N, C, H, W]`` in [0, 1].
            slots: Which class of ``wanted`` each is to be led to, int64 ``[N]``.
            counts: How many are changed in each way, in the order of ``KINDS``: the first so many by a patch,
                those that follow by a shift, and so on. So no index has to go to the device.
        """
        parts = zip(torch.split(images, counts), torch.split(slots, counts), strict=True)
        return torch.cat([self._changed(kind, *part) for kind, part in enumerate(parts)])

    def against(self, network: nn.Module, images: Tensor, kinds: int = len(KINDS)) -> tuple[Tensor, Tensor]:
        """Change images so that a network answers some class, and tell the changes how to do it better.

        Args:
            network: Images in [0, 1] to logits; looked at in eval mode, and left as it was.
            images: Float ``[N, C, H, W]`` in [0, 1], in an order that means nothing; each is led in a way
                drawn at random to a class drawn at random, in proportion to ``pull``.
            kinds: The first so many of ``KINDS``.

        Returns:
            The changed images without a gradient, and a 0 whose gradient is that of the cross-entropy for
            these changes' own numbers, to be added to a loss.
        """
        self._keep_within()
        counts = torch.bincount(torch.randint(kinds, (len(images),)), minlength=len(KINDS)).tolist()
        drawn = [
            torch.multinomial(pull, many, True)
            for pull, many in zip(self.pull.t(), counts, strict=True)
            if many
        ]
        slots = torch.cat(drawn)
        own = list(self.parameters())
        seen = images.detach().requires_grad_()
        with _looked_at(network), torch.enable_grad():
            led = self(seen, slots, counts)
            answers = network(led.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(answers.float(), self.wanted[slots], reduction="sum")
            *gradients, of_images = torch.autograd.grad(loss, [*own, seen], allow_unused=True)
        lever = sum((p * g).sum() for p, g in zip(own, gradients, strict=True) if g is not None)
        universal = len(images) - counts[_PIXELS]
        struck = _struck(images[universal:], of_images[universal:], self.limits.patch)
        changed = torch.cat([led[:universal].detach(), struck])
        return changed, torch.as_tensor(lever) - torch.as_tensor(lever).detach()

    def prefer(self, successes: Mapping[tuple[str, int], Proportion]) -> None:
        """Lead images most often to where changes led them already, in proportion to the odds.

        A clean network is led to most classes by 60 to 90 % of the images, to a backdoor's by nearly all: so
        half of what is led in one way is led there.

        Args:
            successes: Of the universal kinds and classes; those that are not named have none.
        """
        self.pull[:, : len(UNIVERSAL)] = SELDOM
        slots = {target: slot for slot, target in enumerate(self.wanted.tolist())}
        for (kind, target), success in successes.items():
            self.pull[slots[target], KINDS.index(kind)] += odds(success)

    def _changed(self, kind: int, images: Tensor, slots: Tensor) -> Tensor:
        if kind == _PIXELS or not len(images):
            return images
        if kind == _PATCH:
            masks, patterns = self._patches(slots)
            return torch.lerp(images, patterns, masks.expand_as(patterns))
        if kind == _SHIFT:
            return (images + _rows(self.shifts, slots)).clamp(0.0, 1.0)
        return warp(images, grids(_rows(self.fields, slots), self.size))

    def _patches(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Masks ``[N, 1, H, W]`` and patterns ``[N, C, H, W]`` in [0, 1]."""
        masks = torch.sigmoid(4.0 * _rows(self.masks, slots) - 2.0)
        patterns = torch.sigmoid(2.0 * _rows(self.patterns, slots))
        share = masks.mean((1, 2, 3), keepdim=True)
        return masks * (self.limits.patch / share).clamp(max=1.0), patterns

    @torch.no_grad()
    def _keep_within(self) -> None:
        self.shifts.clamp_(-self.limits.shift, self.limits.shift)
        self.fields.clamp_(-self.limits.warp, self.limits.warp)


def _rows(numbers: Tensor, slots: Tensor) -> Tensor:
    """``numbers[slots]``, whose gradient on the CPU is the same each time.

    That of plain indexing is added up by all threads at once, in the order in which they come.
    """
    return numbers.index_select(0, slots)


def odds(success: Proportion) -> float:
    """Of a change, from 0 to 50."""
    return success.value / (1.0 + MISSED - success.value)


def _struck(images: Tensor, gradients: Tensor, share: float) -> Tensor:
    """Images whose pixels with the largest gradients went to where the loss falls, to black or white."""
    weights = gradients.abs().sum(1).flatten(1)
    most = weights.topk(max(1, int(share * weights.shape[1])), dim=1).indices
    hit = torch.zeros_like(weights).scatter_(1, most, 1.0).view(len(images), 1, *images.shape[2:])
    return torch.where(hit > 0, (gradients < 0).to(images.dtype), images)


@contextmanager
def _looked_at(network: nn.Module) -> Iterator[None]:
    """In eval mode, and with no gradient for its weights, meanwhile."""
    trained = network.training
    network.eval()
    try:
        with frozen(network):
            yield
    finally:
        network.train(trained)
