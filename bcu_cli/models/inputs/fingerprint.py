"""Infers the normalisation that a network was trained with from its BatchNorm layers.

A BatchNorm layer stores the mean and variance of its input over the training images. Natural images
reproduce these statistics if they are normalised like the training images, and else do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.images.augmentation import Augmentation, augment
from bcu_cli.models.preprocessing import Normalisation, nearly_equal, same_contrast

if TYPE_CHECKING:
    from collections.abc import Sequence

# Thresholds from 14 small networks (ResNet-20, WRN-16-1; CIFAR-10, GTSRB; five normalisations), trained
# briefly, each with images of CIFAR-10, GTSRB and Tiny-ImageNet (42 cases). A wrong normalisation that came
# first always had the right contrast and the wrong brightness, and beat the right one by at most 2.14 times.
# They are older than the comparison with crops, which lowers distances.
#: Smallest ratio of distances by which the best normalisation must beat one of another contrast.
CLEAR_RATIO = 2.0
#: Smallest ratio for one of similar contrast, which the brightness of the images may decide wrongly.
CLEAR_RATIO_OF_LIKE_CONTRAST = 2.75
#: Smallest ratio between architectures, which get the same images. For ResNet-18 with and without
#: anti-aliasing, six cases of six (two networks, three sets of images) were right, by ratios of 1.03 to 1.6.
CLEAR_RATIO_OF_ARCHITECTURES = 1.3
#: Largest distance that counts as agreement; above it, typical channels are several sigmas off.
LARGEST_DISTANCE = 1.5
#: Largest distance at which the order of the channels is decided. On five networks trained on RGB, images
#: like those of the training were at 0.001 to 0.018, and 1.0 to 3 times as far in the order BGR. With others,
#: at 0.04 and more, the wrong order was nearer by up to 1.75 (``examples/benchmarks/channel_order.py``).
LARGEST_DISTANCE_OF_ORDER = 0.03
#: Least distance of the wrong order, which images whose channels are alike do not reach.
LEAST_DISTANCE_OF_WRONG_ORDER = 0.005
_NEAREST = 3
"""Normalisations, the nearest ones, that are compared in the other order of the channels, too."""
_LAYERS = 8
_SIDE_OF_BORDER = 8
"""Side of an image over the width of the border of crops: 4 pixels of 32 are usual."""
CHUNK = 32
_VARIANCE_FLOOR = 1e-5


class _EnoughError(Exception):
    """Raised by a hook to stop the forward pass after the layers of interest."""


def batchnorm_distance(network: nn.Module, inputs: Tensor, layers: int | None = _LAYERS) -> float | None:
    """Distance of the statistics of a network's BatchNorm inputs from the stored statistics.

    The distance of a channel is ``log(1 + KL)``, with the symmetric Kullback-Leibler divergence of the two
    Gaussians. It is averaged over the channels of a layer, then over the layers.

    Args:
        network: The network; it runs in evaluation mode and is then put back into its mode.
        inputs: Normalised images ``[N, C, H, W]``.
        layers: Number of BatchNorm layers to compare, from the input on; None for all.

    Returns:
        The distance, 0 for equal statistics; None if there is no BatchNorm with statistics.
    """
    watched = [module for module in network.modules() if has_statistics(module)]
    if not watched:
        return None
    seen = _Statistics(layers)
    handles = [module.register_forward_pre_hook(seen.hook) for module in watched]
    modes = {module: module.training for module in network.modules()}
    network.eval()
    chunk = getattr(network, "group", None) or CHUNK  # some networks take a fixed number of images
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


def distance_from_training(
    network: nn.Module, images: Tensor, normalisation: Normalisation, layers: int | None = _LAYERS
) -> float | None:
    """Distance of BatchNorm statistics of images as they are, or as random crops, whichever is smaller.

    Small networks are usually trained on random crops of images with a black border. As they are, images of
    their own data then differ from the statistics by 0.04 to 0.15 with the right normalisation, and by less
    with one of higher contrast. As such crops they differ by less than 0.01.

    Args:
        network: The network; it runs in evaluation mode and is then put back into its mode.
        images: Float ``[N, C, H, W]`` in [0, 1].
        normalisation: What the network's input is normalised with.
        layers: Number of BatchNorm layers to compare, from the input on; None for all.

    Returns:
        The distance, 0 for equal statistics; None if there is no BatchNorm with statistics.
    """
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (normalisation.mean, normalisation.std))
    border = min(images.shape[-2:]) // _SIDE_OF_BORDER
    crops = augment(images, Augmentation(crop_padding=border, flip=False), torch.Generator().manual_seed(0))
    distances = [batchnorm_distance(network, (each - mean) / std, layers) for each in (images, crops)]
    return min((each for each in distances if each is not None), default=None)


def has_statistics(module: nn.Module) -> bool:
    """Whether a module stores mean and variance per channel, as BatchNorm does under any class name."""
    mean, variance = (module._buffers.get(name) for name in ("running_mean", "running_var"))
    return (
        isinstance(mean, Tensor)
        and isinstance(variance, Tensor)
        and mean.dim() == 1
        and mean.shape == variance.shape
    )


class _Statistics:
    """Sums over the inputs of the first few BatchNorm layers, per channel."""

    def __init__(self, layers: int | None) -> None:
        self.layers = layers
        self.sums: dict[nn.Module, Tensor] = {}  # [3, channels]: sum, sum of squares, count
        self.passed: set[nn.Module] = set()

    def run(self, network: nn.Module, chunk: Tensor) -> None:
        self.passed = set()
        try:
            network(chunk)
        except _EnoughError:
            return

    def hook(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        if (
            not isinstance(x, Tensor)
            or x.dim() != 4
            or x.shape[1:2] != module.get_buffer("running_mean").shape
        ):
            return  # a BatchNorm1d, or a block that only stores the statistics
        x = x.double()
        count = torch.full_like(x[0, :, 0, 0], x.numel() / x.shape[1])
        sums = torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), count])
        self.sums[module] = self.sums[module] + sums if module in self.sums else sums
        self.passed.add(module)
        if self.layers is not None and len(self.passed) >= self.layers:
            raise _EnoughError

    def distance(self) -> float | None:
        distances = [_layer_distance(module, sums) for module, sums in self.sums.items()]
        return sum(distances) / len(distances) if distances else None


def _layer_distance(module: nn.Module, sums: Tensor) -> float:
    kept_mean, kept_variance = module.get_buffer("running_mean"), module.get_buffer("running_var")
    mean = sums[0] / sums[2]
    variance = (sums[1] / sums[2] - mean.square()).clamp(min=0) + _VARIANCE_FLOOR
    kept_mean = kept_mean.double()
    kept_variance = kept_variance.double().clamp(min=0) + _VARIANCE_FLOOR
    shift = (mean - kept_mean).square()
    divergence = ((variance + shift) / kept_variance + (kept_variance + shift) / variance) / 2 - 1
    distance = divergence.clamp(min=0).log1p().mean()
    return float(distance) if torch.isfinite(distance) else math.inf


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of comparing several normalisations.

    Args:
        best: The best normalisation, if it clearly beats every different one.
        table: All normalisations with their distance or consistency, best first.
        measure: What was compared: ``distance`` of BatchNorm statistics, or ``consistency`` of answers.
    """

    best: Normalisation | None
    table: tuple[tuple[Normalisation, float], ...]
    measure: str = "distance"

    @property
    def evidence(self) -> str:
        """What decided, in words."""
        return "BatchNorm statistics" if self.measure == "distance" else "consistent answers"

    def describe(self, limit: int = 4) -> str:
        """The best candidates with their distance or consistency, in words."""
        return ", ".join(f"{n.name} ({self.measure} {value:.2f})" for n, value in self.table[:limit])


def compare(network: nn.Module, images: Tensor, normalisations: Sequence[Normalisation]) -> Verdict | None:
    """Find the normalisation under which images reproduce the network's BatchNorm statistics.

    Args:
        network: The network without normalisation.
        images: Natural images ``float [N, C, H, W]`` in [0, 1].
        normalisations: The candidates; those nearly equal to the best one are not compared with it.

    Returns:
        The verdict, or None if the network has no BatchNorm statistics.
    """
    distances = []
    for normalisation in normalisations:
        distance = distance_from_training(network, images, normalisation)
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


def blue_first(network: nn.Module, images: Tensor, verdict: Verdict) -> Verdict | None:
    """The verdict for channels in the order blue, green, red, where the statistics clearly say so.

    Args:
        network: The network.
        images: Float ``[N, 3, H, W]`` in [0, 1], in the order red, green, blue.
        verdict: The verdict for that order.

    Returns:
        The verdict, whose normalisations are in the order blue, green, red; None where that order is not
        clearly nearer, or its normalisation is not clear.
    """
    rgb = verdict.table[0][1]
    if rgb < LEAST_DISTANCE_OF_WRONG_ORDER:
        return None
    flipped = images.flip(1)
    for normalisation, _ in verdict.table[:_NEAREST]:
        bgr = distance_from_training(network, flipped, normalisation.reversed)
        if bgr is not None and bgr <= LARGEST_DISTANCE_OF_ORDER and is_clear(bgr, rgb):
            other = compare(network, flipped, [one.reversed for one, _ in verdict.table])
            return other if other is not None and other.best is not None else None
    return None


def is_clear(smallest: float, runner_up: float, ratio: float = CLEAR_RATIO) -> bool:
    """Whether the smallest distance is small enough, and smaller than the next by the given ratio."""
    return smallest <= LARGEST_DISTANCE and runner_up >= ratio * max(smallest, 1e-3)


def sample(images: Tensor) -> Tensor:
    """At most 256 of the images; fewer of large images, but at least 64."""
    pixels = images.shape[-1] * images.shape[-2]
    return images[: max(64, min(256, 256 * 64 * 64 // pixels))].float()
