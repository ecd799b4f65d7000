"""The names of the built-in networks; a separate module, so that listing them needs no torch."""

from __future__ import annotations

#: The built-in networks, with the input size (C, H, W) they are made for; all take other sizes too.
BUILTIN_ARCHITECTURES: dict[str, tuple[int, int, int]] = {
    "preact_resnet18": (3, 32, 32),
    "resnet8": (3, 32, 32),
    "resnet14": (3, 32, 32),
    "resnet18_cifar": (3, 32, 32),
    "resnet18_cifar_w16": (3, 32, 32),
    "resnet20": (3, 32, 32),
    "resnet56": (3, 32, 32),
    "vgg16_bn_cifar": (3, 32, 32),
    "wrn16_1": (3, 32, 32),
    "wrn28_10": (3, 32, 32),
}


def builtin_names() -> tuple[str, ...]:
    """The names of the built-in networks, in alphabetical order."""
    return tuple(sorted(BUILTIN_ARCHITECTURES))
