"""The penultimate features of a classifier: what its last linear layer is given (section 3.3, Figure 3).

The layer is the linear one that is called last, whatever its name. That nothing but its input decides the
logits is tried out: put into a pass over other images, it must bring the same logits about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError
from bcu_cli.evaluation.measures import labels_of
from bcu_cli.models.classifier import name_of
from bcu_cli.training.inference import in_batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device
    from bcu_cli.triggers.base import Trigger

MOST_IMAGES = 1000
"""Of a sample, all classes together."""
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Penultimate features of some images of each class.

    Args:
        labels: int64 ``[N]``, the true classes.
        clean: float32 ``[N, D]``.
        triggered: float32 ``[N, D]``, of the same images with a trigger; None where there is none.
    """

    labels: Tensor
    clean: Tensor
    triggered: Tensor | None


def of_sample(
    model: Classifier, data: ImageSet, trigger: Trigger | None, device: Device, *, what: str
) -> Features:
    """The features of a sample of labelled images, clean and with a trigger.

    Args:
        model: Put into eval mode, and moved to the device.
        data: Labelled; of the same images the same ones are taken, whatever the model.
        trigger: None where clean images are all that is wanted.
        device: Where.
        what: How errors call the model.

    Raises:
        ArchitectureError: There is no last linear layer that can be watched.
        AnswersError: It is given NaN or infinite numbers.
    """
    chosen = data.subset(balanced(labels_of(data)))
    layer = last_linear(model, chosen.images[:2], device, what=what)
    features = [penultimate(model, layer, chosen.images, device)]
    if trigger:
        features.append(penultimate(model, layer, chosen.images, device, transform=trigger.apply_to_bytes))
    return Features(labels=labels_of(chosen), clean=features[0], triggered=features[1] if trigger else None)


def balanced(labels: Tensor, at_most: int = MOST_IMAGES) -> Tensor:
    """As many images of each class as there is room for, spread evenly over those that there are.

    Args:
        labels: int64 ``[N]``.
        at_most: Of all classes; where there are more classes than that, the first of them have one each.

    Returns:
        int64 ``[M]``, rising: which images.
    """
    classes = sorted(set(labels.tolist()))[:at_most]
    share = at_most // len(classes)
    chosen = []
    for label in classes:
        of_class = (labels == label).nonzero().flatten()
        places = torch.arange(min(share, len(of_class))) * len(of_class) // min(share, len(of_class))
        chosen.append(of_class[places])
    return torch.cat(chosen).sort().values


def penultimate(
    model: Classifier,
    layer: nn.Module,
    images: Tensor,
    device: Device,
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The input of a model's last linear layer, float32 ``[N, D]``, on the CPU.

    Args:
        model: As ``last_linear`` left it.
        layer: What ``last_linear`` found in it.
        images: uint8 ``[N, C, H, W]``.
        device: Where.
        transform: Changes each batch of uint8 images first; a trigger, say.
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def features(batch: Tensor) -> Tensor:
        seen.clear()  # of a batch that did not fit into memory
        model(batch)
        return seen[-1].float()

    try:
        return in_batches(features, images, device, transform=transform, name=name_of(model))
    finally:
        handle.remove()


@torch.inference_mode()
def last_linear(model: Classifier, images: Tensor, device: Device, *, what: str) -> nn.Module:
    """The linear layer whose input alone decides what a model answers.

    Args:
        model: Put into eval mode, and moved to the device.
        images: uint8 ``[N, C, H, W]``, a few to try it out on.
        device: Where.
        what: How errors call the model.

    Raises:
        ArchitectureError: There is none, or its input cannot be watched.
    """
    hint = "--tsne draws what the last linear layer of a network is given; leave it out"
    model.to(device.torch).eval()
    batch = images.to(device.torch).float() / 255.0
    calls, logits = _watched(model, batch)
    layer, seen = calls[-1] if calls else (None, None)
    if not isinstance(layer, nn.Linear) or seen is None or seen.dim() != 2:
        raise ArchitectureError(f"{what} does not end in a linear layer", hint)
    handle = layer.register_forward_pre_hook(lambda _, inputs: (seen, *inputs[1:]))
    try:
        again = model(1.0 - batch)
    finally:
        handle.remove()
    if sum(each is layer for each, _ in calls) > 1 or not torch.allclose(again, logits, equal_nan=True):
        raise ArchitectureError(f"what {what} answers is not decided by its last linear layer alone", hint)
    return layer


def _watched(model: Classifier, batch: Tensor) -> tuple[list[tuple[nn.Module, Tensor]], Tensor]:
    """Every call of a convolution or linear layer in its order, with its input; and the logits."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: Any) -> None:
        if inputs:
            calls.append((module, inputs[0]))

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, _WEIGHTED)]
    try:
        return calls, model(batch)
    finally:
        for handle in handles:
            handle.remove()
