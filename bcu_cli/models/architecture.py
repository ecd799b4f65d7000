"""The architecture of a checkpoint, as far as it is known. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The architecture of a checkpoint.

    Args:
        name: ``resnet18_cifar``, ``timm:resnet50``, ``torchvision:vgg16_bn``, ``my.py:make`` or
            ``torchscript``.
        source: How the architecture was found, in words.
        num_classes: Number of outputs.
        alternatives: Other architectures with the same tensors and the same function.
        rivals: Other architectures with the same tensors and another function. If there are any, ``name`` is
            only the likeliest.
    """

    name: str
    source: str
    num_classes: int
    alternatives: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
