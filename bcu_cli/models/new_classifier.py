"""A new network with random weights and the normalisation of its training images, for attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bcu_cli.errors import ArchitectureError
from bcu_cli.models.builtin import BUILTIN_ARCHITECTURES, is_builtin, split_width
from bcu_cli.models.classifier import Classifier
from bcu_cli.models.index import entry_of
from bcu_cli.models.preprocessing import Preprocessing
from bcu_cli.models.registry import build, resolve

if TYPE_CHECKING:
    from torch import Tensor


def usual_size(arch: str, side: int | None) -> tuple[int, int, int]:
    """Channels, height and width that an architecture is made for.

    Args:
        arch: Name of the architecture.
        side: Height and width in pixels that the user gave; None for the architecture's default.

    Raises:
        ArchitectureError: The architecture or its default size is unknown.
    """
    full = resolve(arch)
    if side is not None:
        return (3, side, side)
    if is_builtin(full):
        return BUILTIN_ARCHITECTURES[split_width(full)[0]]
    entry = entry_of(full)
    if entry is None or entry.preprocessing is None:
        raise ArchitectureError(f"what size of images {arch} takes is not known", "give it with --input-size")
    return entry.preprocessing.input_size


def new_classifier(arch: str, num_classes: int, images: Tensor, *, seed: int) -> Classifier:
    """A classifier with random weights.

    Args:
        arch: Name of the architecture, as :func:`~bcu_cli.models.build` takes it.
        num_classes: Number of outputs.
        images: The training images, uint8 ``[N, C, H, W]``. Their mean and deviation per channel become the
            normalisation, and their size the input size.
        seed: Seed of the weights.
    """
    _, channels, height, width = images.shape
    sample = images[:: max(1, len(images) // 5000)].double() / 255.0
    deviation, mean = torch.std_mean(sample, dim=(0, 2, 3))
    preprocessing = Preprocessing(
        input_size=(channels, height, width),
        mean=tuple(round(value, 4) for value in mean.tolist()),
        std=tuple(max(0.01, round(value, 4)) for value in deviation.tolist()),
        source="training images",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(arch, num_classes=num_classes, input_size=preprocessing.input_size)
    return Classifier(network, preprocessing, num_classes)
