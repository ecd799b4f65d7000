"""A network to train: with random weights, or with those of another classifier but for its last layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bcu_cli.errors import ArchitectureError
from bcu_cli.models.architectures.index import entry_of
from bcu_cli.models.classifier import Classifier, try_channels_last
from bcu_cli.models.networks.builtin import BUILTIN_ARCHITECTURES, is_builtin, split_width
from bcu_cli.models.preprocessing import Preprocessing
from bcu_cli.models.registry import build, resolve

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.models.architecture import Architecture


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
    made = Classifier(network, preprocessing, num_classes)
    try_channels_last(made, images[:2].float() / 255.0)
    return made


def with_classes(model: Classifier, architecture: Architecture, num_classes: int, *, seed: int) -> Classifier:
    """A classifier of another number of classes, with all weights but those of the last layer.

    The network is built again with ``num_classes`` outputs. Tensors whose first side is the number of classes
    are new; all others are taken over.

    Args:
        model: The classifier, on the CPU.
        architecture: Its architecture.
        num_classes: Number of outputs.
        seed: Seed of the new weights.

    Returns:
        The new classifier with the same preprocessing; ``model`` itself if it has as many classes.

    Raises:
        ArchitectureError: The network cannot be built with that number of classes.
    """
    if model.num_classes == num_classes:
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = model.preprocessing.input_size
        network = build(architecture.name, num_classes=num_classes, input_size=size).float()
    held, new = model.network.state_dict(), network.state_dict()
    sides = (model.num_classes, num_classes)
    last = {name for name, tensor in new.items() if name in held and _sides(held[name], tensor) == sides}
    if not last or held.keys() != new.keys() or any(held[n].shape != new[n].shape for n in new.keys() - last):
        raise ArchitectureError(
            f"{architecture.name} has no last layer that can be replaced by one of {num_classes} classes",
            f"give data of {model.num_classes} classes, or other weights",
        )
    network.load_state_dict({name: new[name] if name in last else tensor for name, tensor in held.items()})
    made = Classifier(network, model.preprocessing, num_classes, name=model.name)
    made.channels_last = model.channels_last
    return made


def _sides(old: Tensor, new: Tensor) -> tuple[int, int] | None:
    """The first sides of two tensors that differ there alone; None of others."""
    if old.dim() == 0 or old.shape[1:] != new.shape[1:] or old.shape[:1] == new.shape[:1]:
        return None
    return old.shape[0], new.shape[0]
