"""The preprocessing of images for a network: size, cropping and normalisation. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bcu_cli.images.decoding.image import Geometry

#: Largest height or width that the user may give.
LARGEST_SIDE = 8192
_LEAST_STD, _MOST_STD, _MOST_MEAN = 1e-4, 1e4, 1e4
#: Names of filters that torchvision and Pillow share.
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CENTER, SQUASH = "center", "squash"
#: ``center`` keeps the aspect ratio and crops the longer side; ``squash`` resizes each side independently.
CROP_MODES = (CENTER, SQUASH)
RGB, BGR = "RGB", "BGR"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Size, cropping and normalisation of a network's input.

    Args:
        input_size: Channels, height and width of the network's input.
        mean: Mean per channel, for images in [0, 1].
        std: Standard deviation per channel, for images in [0, 1]; greater than 0.
        crop_pct: Share kept by the centre crop: the shorter side is resized to ``round(H / crop_pct)``.
        crop_mode: One of :data:`CROP_MODES`. ``squash`` resizes each side to ``round(side / crop_pct)``
            before the crop.
        interpolation: Filter of the resizing, one of :data:`INTERPOLATIONS`.
        channel_order: ``RGB``, or ``BGR`` where the network takes blue first. ``mean`` and ``std`` are in
            this order.
        source: Source of mean and std, in words ("option", "metadata", "BatchNorm statistics", …).

    Raises:
        ValueError: A value is out of its plausible range.

    Example:
        >>> bcu.Preprocessing(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3).crop_pct
        1.0
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    crop_mode: str = CENTER
    interpolation: str = "bilinear"
    channel_order: str = RGB
    source: str = ""

    def __post_init__(self) -> None:
        check_size(self.input_size)
        channels = self.input_size[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} standard deviations for {channels} channels"
            )
        check_normalisation(self.mean, self.std)
        check_crop(self.crop_pct)
        check_crop_mode(self.crop_mode)
        check_interpolation(self.interpolation)
        check_channel_order(self.channel_order)
        if self.channel_order == BGR and channels != 3:
            raise ValueError(f"{channels} channels have no order {BGR}")

    @property
    def geometry(self) -> Geometry:
        """The size and cropping alone, as the decoding of images takes them."""
        from bcu_cli.images.decoding.image import Geometry

        channels, height, width = self.input_size
        return Geometry(
            channels=channels,
            height=height,
            width=width,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
        )


def check_size(size: tuple[int, int, int]) -> None:
    """Raise ``ValueError`` unless ``size`` is a plausible (C, H, W)."""
    if len(size) != 3 or not all(1 <= side <= LARGEST_SIDE for side in size):
        raise ValueError(
            f"input size {'x'.join(map(str, size))} is not three numbers from 1 to {LARGEST_SIDE}"
        )


def check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise ``ValueError`` unless means and deviations are plausible for some scale of images."""
    if not all(math.isfinite(value) for value in mean):
        raise ValueError(f"mean {format_values(mean)} is not finite")
    if not all(abs(value) <= _MOST_MEAN for value in mean):
        raise ValueError(f"mean {format_values(mean)} is beyond {_MOST_MEAN:g}")
    if not all(math.isfinite(value) and value > 0 for value in std):
        raise ValueError(f"std {format_values(std)} is not greater than 0")
    if not all(_LEAST_STD <= value <= _MOST_STD for value in std):
        raise ValueError(f"std {format_values(std)} is not from {_LEAST_STD:g} to {_MOST_STD:g}")


def check_crop(crop_pct: float) -> None:
    """Raise ``ValueError`` unless the share is in [0.05, 1]."""
    if not 0.05 <= crop_pct <= 1:
        raise ValueError(f"crop share {crop_pct} is not in [0.05, 1]")


def check_crop_mode(crop_mode: str) -> None:
    """Raise ``ValueError`` unless the name is one of :data:`CROP_MODES`."""
    if crop_mode not in CROP_MODES:
        raise ValueError(f"crop mode {crop_mode!r} is none of {', '.join(CROP_MODES)}")


def check_channel_order(channel_order: str) -> None:
    """Raise ``ValueError`` unless the order is ``RGB`` or ``BGR``."""
    if channel_order not in {RGB, BGR}:
        raise ValueError(f"channel order {channel_order!r} is neither {RGB} nor {BGR}")


def check_interpolation(interpolation: str) -> None:
    """Raise ``ValueError`` unless the name is one of :data:`INTERPOLATIONS`."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r} is none of {', '.join(INTERPOLATIONS)}")


def format_values(values: tuple[float, ...]) -> str:
    """Format values as ``--mean`` and ``--std`` take them: ``0.5,0.25,0.25``."""
    return ",".join(f"{value:.4g}" for value in values)


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """A widely used mean and standard deviation per channel, with its name."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def reversed(self) -> Normalisation:
        """The same for the channels in the opposite order."""
        return Normalisation(name=self.name, mean=self.mean[::-1], std=self.std[::-1])


#: Widely used normalisations for three channels. Of the two CIFAR-10 deviations, one is over all pixels and
#: one is the mean over images; both are in use.
NORMALISATIONS = (
    Normalisation(name="none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    Normalisation(name="ImageNet", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    Normalisation(name="CIFAR-10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    Normalisation(name="CIFAR-10 (per image)", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    Normalisation(name="CIFAR-100", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    Normalisation(name="GTSRB", mean=(0.3403, 0.3121, 0.3214), std=(0.2724, 0.2608, 0.2669)),
    Normalisation(name="0.5/0.5", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Normalisation(name="0 to 255", mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255)),
)
#: Normalisations of three channels that keep the scale of pixels up to 255. Only BatchNorm statistics tell
#: them from others: inputs that are too large make any network sure of itself.
OF_PIXELS = (
    Normalisation(
        name="0 to 255 less ImageNet's mean", mean=(0.485, 0.456, 0.406), std=(1 / 255, 1 / 255, 1 / 255)
    ),
    Normalisation(name="-128 to 127", mean=(0.5, 0.5, 0.5), std=(1 / 255, 1 / 255, 1 / 255)),
)
#: Widely used normalisations for one channel.
GREY_NORMALISATIONS = (
    Normalisation(name="none", mean=(0.0,), std=(1.0,)),
    Normalisation(name="MNIST", mean=(0.1307,), std=(0.3081,)),
    Normalisation(name="Fashion-MNIST", mean=(0.2860,), std=(0.3530,)),
    Normalisation(name="0.5/0.5", mean=(0.5,), std=(0.5,)),
    Normalisation(name="0 to 255", mean=(0.0,), std=(1 / 255,)),
)


def nearly_equal(a: Normalisation, b: Normalisation) -> bool:
    """Whether two normalisations give nearly the same input: contrast within 35 %, brightness within 0.25.

    The brightness is in units of the normalised input. ImageNet's and the CIFARs' normalisations are nearly
    equal in this sense; "none" and 0.5/0.5 are not.
    """
    shifts = (abs(m - n) / min(s, t) for m, s, n, t in zip(a.mean, a.std, b.mean, b.std, strict=True))
    return same_contrast(a, b) and max(shifts) <= 0.25


def same_contrast(a: Normalisation, b: Normalisation) -> bool:
    """Whether the deviations of two normalisations are within 35 % of each other in every channel."""
    return all(1 / 1.35 <= s / t <= 1.35 for s, t in zip(a.std, b.std, strict=True))
