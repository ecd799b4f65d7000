"""Which normalisation layers a network runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from bcu_cli.models.architectures.dispatch import DispatchMode

if TYPE_CHECKING:
    from torch import Tensor, nn


class _Normalisations(DispatchMode):
    """Notes whether the operators inside the context normalise by the batch or by the layer."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_batch = self.by_layer = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        name = func.name()
        self.by_batch |= "batch_norm" in name
        self.by_layer |= "layer_norm" in name or "transformer_encoder_layer" in name  # which fuses LayerNorm
        return func(*args, **(kwargs or {}))


def normalised_by(network: nn.Module, images: Tensor) -> Literal["batch", "layer", "nothing"]:
    """What normalises the activations of a network: BatchNorm, else LayerNorm (as in ViTs), else nothing.

    The operators are observed, since code in a model file has no such modules. So the file decides: LayerNorm
    that it holds as sums and products is not seen, nor BatchNorm that is folded into convolutions.
    InstanceNorm counts as BatchNorm; RMSNorm and GroupNorm are not seen.

    Args:
        network: Maps ``images`` to logits.
        images: A few images in [0, 1], float ``[N, C, H, W]``, on the network's device.
    """
    with torch.no_grad(), _Normalisations() as seen:
        network(images)
    return "batch" if seen.by_batch else "layer" if seen.by_layer else "nothing"
