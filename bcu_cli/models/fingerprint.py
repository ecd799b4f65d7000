"""Which inputs a network was trained on, read from its BatchNorm layers.

A BatchNorm layer keeps the mean and variance of its input over the training images. Natural images that
are normalised as those were reproduce these statistics; normalised otherwise they do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.models.preprocessing import Normalisation, nearly_equal, same_contrast

if TYPE_CHECKING:
    from collections.abc import Sequence

# Thresholds from 14 small networks (ResNet-20, WRN-16-1; CIFAR-10, GTSRB; five normalisations), trained
# briefly, each shown images of CIFAR-10, GTSRB and Tiny-ImageNet (42 cases). Where a wrong normalisation
# came first, it was by a factor of 2.14 at most, and always one of right contrast and wrong brightness.
#: A runner-up of another contrast must be at least this many times as far away as the best one.
CLEAR_RATIO = 2.0
#: The same for one of like contrast: images of another brightness than the training's look alike.
CLEAR_RATIO_OF_LIKE_CONTRAST = 2.75
#: Between architectures, which see the same images. ResNet-18 with and without anti-aliasing (two networks,
#: three sets of images) came out right six times of six, by factors of 1.03 to 1.6.
CLEAR_RATIO_OF_ARCHITECTURES = 1.3
#: A best distance above this is no agreement (it means that typical channels are several sigmas off).
LARGEST_DISTANCE = 1.5
_LAYERS = 8
_CHUNK = 32
_VARIANCE_FLOOR = 1e-5


class _EnoughError(Exception):
    """Raised by a hook to leave the forward pass once the layers of interest have been seen."""


def batchnorm_distance(network: nn.Module, inputs: Tensor, layers: int | None = _LAYERS) -> float | None:
    """How far a network's BatchNorm inputs are from what the layers remember.

    Per channel the symmetric Kullback-Leibler divergence of the two Gaussians, as ``log(1 + KL)``; its mean
    over the channels of a layer, then over the layers.

    Args:
        network: In any mode; it is run in evaluation mode and left as it was.
        inputs: Normalised images ``[N, C, H, W]``.
        layers: How many BatchNorm layers to look at, from the input on; None for all.

    Returns:
        The distance (0: the same statistics), or None where there is no BatchNorm with statistics.
    """
    watched = [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    ]
    if not watched:
        return None
    seen = _Statistics(layers)
    handles = [module.register_forward_pre_hook(seen.hook) for module in watched]
    modes = {module: module.training for module in network.modules()}
    network.eval()
    chunk = getattr(network, "group", None) or _CHUNK  # of a network that takes so many images at a time
    try:
        with torch.no_grad():
            for start in range(0, len(inputs), chunk):
                seen.run(network, inputs[start : start + chunk])
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return seen.distance()


class _Statistics:
    """Sums per channel of the inputs of the first few BatchNorm layers to run."""

    def __init__(self, layers: int | None) -> None:
        self.layers = layers
        self.sums: dict[nn.BatchNorm2d, Tensor] = {}  # [3, channels]: sum, sum of squares, count
        self.passed: set[nn.BatchNorm2d] = set()

    def run(self, network: nn.Module, chunk: Tensor) -> None:
        self.passed = set()
        try:
            network(chunk)
        except _EnoughError:
            return

    def hook(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)  # only these are hooked  # noqa: S101
        x = args[0].double()
        count = torch.full_like(x[0, :, 0, 0], x.numel() / x.shape[1])
        sums = torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), count])
        self.sums[module] = self.sums[module] + sums if module in self.sums else sums
        self.passed.add(module)
        if self.layers is not None and len(self.passed) >= self.layers:
            raise _EnoughError

    def distance(self) -> float:
        distances = [_layer_distance(module, sums) for module, sums in self.sums.items()]
        return sum(distances) / len(distances) if distances else math.inf


def _layer_distance(module: nn.BatchNorm2d, sums: Tensor) -> float:
    assert module.running_mean is not None and module.running_var is not None  # noqa: S101
    mean = sums[0] / sums[2]
    variance = (sums[1] / sums[2] - mean.square()).clamp(min=0) + _VARIANCE_FLOOR
    kept_mean = module.running_mean.double()
    kept_variance = module.running_var.double().clamp(min=0) + _VARIANCE_FLOOR
    shift = (mean - kept_mean).square()
    divergence = ((variance + shift) / kept_variance + (kept_variance + shift) / variance) / 2 - 1
    distance = divergence.clamp(min=0).log1p().mean()
    return float(distance) if torch.isfinite(distance) else math.inf


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison of several normalisations says.

    Args:
        best: The one with the smallest distance, if it is clearly better than every different one.
        table: All of them with their distances, smallest first.
    """

    best: Normalisation | None
    table: tuple[tuple[Normalisation, float], ...]

    def describe(self, limit: int = 4) -> str:
        """The first few candidates with their distances, for people."""
        return ", ".join(f"{n.name} (distance {distance:.2f})" for n, distance in self.table[:limit])


def compare(network: nn.Module, images: Tensor, normalisations: Sequence[Normalisation]) -> Verdict | None:
    """Find the normalisation under which images reproduce the network's BatchNorm statistics.

    Args:
        network: The network without normalisation.
        images: Natural images ``float [N, C, H, W]`` in [0, 1].
        normalisations: The candidates; those that are nearly equal to the best one do not count against it.

    Returns:
        The verdict, or None where the network has no BatchNorm statistics.
    """
    distances = []
    for normalisation in normalisations:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (normalisation.mean, normalisation.std))
        distance = batchnorm_distance(network, (images - mean) / std)
        if distance is None:
            return None
        distances.append(distance)
    table = sorted(zip(normalisations, distances, strict=True), key=lambda pair: pair[1])
    best, smallest = table[0]
    clear = all(
        is_clear(smallest, distance, CLEAR_RATIO_OF_LIKE_CONTRAST if same_contrast(n, best) else CLEAR_RATIO)
        for n, distance in table
        if not nearly_equal(n, best)
    )
    return Verdict(best=best if clear else None, table=tuple(table))


def is_clear(smallest: float, runner_up: float, ratio: float = CLEAR_RATIO) -> bool:
    """Whether the smallest distance is small enough, and enough smaller than the next, to decide."""
    return smallest <= LARGEST_DISTANCE and runner_up >= ratio * max(smallest, 1e-3)


def sample(images: Tensor) -> Tensor:
    """At most 256 of the images, fewer of large ones: at least 64."""
    pixels = images.shape[-1] * images.shape[-2]
    return images[: max(64, min(256, 256 * 64 * 64 // pixels))].float()
