"""Inference of classifiers in batches that fit into memory."""

from __future__ import annotations

from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING

import torch

from bcu_cli.errors import TrainingError
from bcu_cli.models.classifier import no_numbers
from bcu_cli.training import ranks
from bcu_cli.training.devices import is_out_of_memory
from bcu_cli.training.profile import EVALUATION, span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from bcu_cli.images.stream import Images
    from bcu_cli.training.devices import Device

BATCH_SIZE = 512
CPU_BATCH_SIZE = 64
"""Batch size on a CPU: activations fit into its caches, which is 2 to 3 times as fast as 512."""
CPU_BATCH_PIXELS = CPU_BATCH_SIZE * 112 * 112
"""Most pixels of a batch on a CPU: 16 images at 224x224. They are as fast as 64, for a quarter of the RAM."""
FEWEST_IN_BATCH = 8
"""Images of a batch on a CPU, however large they are: with fewer each takes longer."""
_NOT_FINITE = -1
"""Marks an image whose logits are not finite, in place of a class."""


def predict(
    model: nn.Module, images: Images, device: Device, *, transform: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The class that a model predicts for each image, in fp32 and eval mode.

    Args:
        model: Maps images in [0, 1] to logits; put into eval mode, and moved to the device.
        images: Images, uint8 ``[N, C, H, W]``.
        device: The device to run on.
        transform: Applied to each batch of uint8 images first, for example a trigger.

    Returns:
        The classes, int64 ``[N]``, on the CPU.

    Raises:
        TrainingError: A single image does not fit into memory, or the training of the model diverged.
        AnswersError: The network outputs NaN, infinity, or no logits at all.
    """
    model.to(device.torch).eval()
    answers = in_batches(lambda batch: _classes(model(batch)), images, device, transform=transform)
    if (answers == _NOT_FINITE).any():
        raise no_numbers(model)
    return answers


def _classes(logits: Tensor) -> Tensor:
    """The class of each row, int64 ``[N]``, computed without a device synchronisation."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), _NOT_FINITE)


@span(EVALUATION)
@torch.inference_mode()
def in_batches(
    compute: Callable[[Tensor], Tensor],
    images: Images,
    device: Device,
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    network: nn.Module | None = None,
) -> Tensor:
    """Results of ``compute`` on the images, batch by batch; several ranks share the images.

    Args:
        compute: Maps images, float32 ``[N, C, H, W]`` in [0, 1] on the device, to a tensor ``[N, …]``.
        images: Images, uint8 ``[N, C, H, W]``.
        device: The device to run on.
        transform: Applied to each batch of uint8 images first, for example a trigger.
        network: The network that computes, for errors.

    Returns:
        The results, finite, ``[N, …]`` on the CPU.

    Raises:
        TrainingError: A single image does not fit into memory, or the training of the network diverged.
        AnswersError: A result is NaN or infinite.
    """
    shared = len(images) >= ranks.count()
    rows = ranks.part(len(images)) if shared else slice(0, len(images))
    computed, start = [], rows.start
    size = _batch_size(images, device)
    while start < rows.stop:
        try:
            batch = images[start : min(start + size, rows.stop)].to(device.torch)
            batch = transform(batch) if transform else batch
            computed.append(compute(scaled(batch)).cpu())
            start += size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise TrainingError(
                    f"one image does not fit into the memory of {device.name}", "use another --device"
                ) from error
            size = (size + 1) // 2
    whole = ranks.gathered(torch.cat(computed)) if shared else torch.cat(computed)
    if not whole.isfinite().all():
        raise no_numbers(network)
    return whole


def _batch_size(images: Images, device: Device) -> int:
    """Images in a batch that suit a device."""
    if device.torch.type != "cpu":
        return BATCH_SIZE
    return min(CPU_BATCH_SIZE, max(FEWEST_IN_BATCH, CPU_BATCH_PIXELS // prod(images.shape[-2:])))


def scaled(images: Tensor) -> Tensor:
    """uint8 images ``[N, C, H, W]`` as float32 in [0, 1], in the memory format of fast convolutions."""
    return images.to(torch.float32, memory_format=torch.channels_last) / 255.0


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Compute no gradients for the parameters while the context lasts."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
