"""What is known about which network a file holds. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The architecture of a checkpoint.

    Args:
        name: ``resnet18_cifar``, ``timm:resnet50``, ``torchvision:vgg16_bn``, ``my.py:make`` or
            ``torchscript``.
        source: How it was found, for people.
        num_classes: Outputs of the network.
        alternatives: Others with the same tensors and the same function.
        rivals: Others with the same tensors that compute something else; where there are any, ``name`` is
            only the likeliest.
    """

    name: str
    source: str
    num_classes: int
    alternatives: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
