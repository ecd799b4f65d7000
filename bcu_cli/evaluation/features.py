"""Penultimate features of a classifier: the input of its last linear layer (section 3.3, Figure 3).

That layer is the linear layer that is called last. A check makes sure that its input alone decides the
logits: inserted into a forward pass of other images, it must give the same logits.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError
from bcu_cli.evaluation.measures import labels_of
from bcu_cli.training.inference import in_batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device
    from bcu_cli.triggers.base import Trigger

MOST_IMAGES = 1000
"""Most images of a sample, all classes together."""
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Penultimate features of some images of each class.

    Args:
        labels: The true classes, int64 ``[N]``.
        clean: Features of the clean images, float32 ``[N, D]``.
        triggered: Features of the same images with a trigger, float32 ``[N, D]``; None without a trigger.
    """

    labels: Tensor
    clean: Tensor
    triggered: Tensor | None


def of_sample(
    model: Classifier, data: ImageSet, trigger: Trigger | None, device: Device, *, what: str
) -> Features:
    """The features of a sample of labelled images, clean and with a trigger.

    Args:
        model: The model; it is put into eval mode and moved to the device.
        data: Labelled images; the sample does not depend on the model.
        trigger: The trigger; None for clean images only.
        device: The device to run on.
        what: Name of the model in errors.

    Raises:
        ArchitectureError: There is no last linear layer whose input can be recorded.
        AnswersError: Its input is not finite.
    """
    chosen = data.subset(balanced(labels_of(data)))
    layer = last_linear(model, chosen.images[:2], device, what=what)
    features = [penultimate(model, layer, chosen.images, device)]
    if trigger:
        features.append(penultimate(model, layer, chosen.images, device, transform=trigger.apply_to_bytes))
    return Features(labels=labels_of(chosen), clean=features[0], triggered=features[1] if trigger else None)


def balanced(labels: Tensor, at_most: int = MOST_IMAGES) -> Tensor:
    """Select equally many images of each class, evenly spaced.

    Args:
        labels: Labels, int64 ``[N]``.
        at_most: Most images of all classes together; with more classes, the first ones have an image each.

    Returns:
        Index of the images in ascending order, int64 ``[M]``.
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
        model: The model, after ``last_linear``.
        layer: The result of ``last_linear``.
        images: Images, uint8 ``[N, C, H, W]``.
        device: The device to run on.
        transform: Applied to each batch of uint8 images first, for example a trigger.
    """
    seen: list[Tensor] = []

    def features(batch: Tensor) -> Tensor:
        seen.clear()  # drops the input of a batch that did not fit into memory
        model(batch)
        return seen[-1].float()

    with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        return in_batches(features, images, device, transform=transform, network=model)


@torch.inference_mode()
def last_linear(model: Classifier, images: Tensor, device: Device, *, what: str) -> nn.Module:
    """The linear layer whose input alone decides the logits of a model.

    Args:
        model: The model; it is put into eval mode and moved to the device.
        images: A few images for the check, uint8 ``[N, C, H, W]``.
        device: The device to run on.
        what: Name of the model in errors.

    Raises:
        ArchitectureError: There is no such layer, or its input cannot be recorded.
    """
    hint = "--tsne draws the input of a network's last linear layer; leave it out"
    model.to(device.torch).eval()
    batch = images.to(device.torch).float() / 255.0
    calls, logits = _recorded_calls(model, batch)
    layer, seen = calls[-1] if calls else (None, None)
    if not isinstance(layer, nn.Linear) or seen is None or seen.dim() != 2:
        raise ArchitectureError(f"{what} does not end in a linear layer", hint)
    with layer.register_forward_pre_hook(lambda _, inputs: (seen, *inputs[1:])):
        again = model(1.0 - batch)
    if sum(each is layer for each, _ in calls) > 1 or not torch.allclose(again, logits, equal_nan=True):
        raise ArchitectureError(f"the logits of {what} do not depend on its last linear layer alone", hint)
    return layer


def _recorded_calls(model: Classifier, batch: Tensor) -> tuple[list[tuple[nn.Module, Tensor]], Tensor]:
    """All calls of convolutions and linear layers in order, with their inputs, and the logits."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: Any) -> None:
        if inputs:
            calls.append((module, inputs[0]))

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, _WEIGHTED):
                hooks.enter_context(module.register_forward_pre_hook(note))
        return calls, model(batch)
