"""A network together with the normalisation of its input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bcu_cli.models.preprocessing import Preprocessing


class Classifier(nn.Module):
    """A network behind its normalisation: pictures in [0, 1] in, logits out.

    The mean and deviation are buffers that are not saved, so that ``network.state_dict()`` holds exactly the
    tensors of the file that the network came from.

    Args:
        network: Normalised images ``[N, C, H, W]`` to logits ``[N, K]``.
        preprocessing: Of the network; only mean and std are applied here.
        num_classes: K.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.register_buffer("mean", _per_channel(preprocessing.mean), persistent=False)
        self.register_buffer("std", _per_channel(preprocessing.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``float [N, C, H, W]`` in [0, 1] to logits ``[N, K]``."""
        logits = self.network((images - self.mean) / self.std)
        # GoogLeNet and Inception return (logits, auxiliary logits, …) in training mode.
        result: Tensor = logits if isinstance(logits, Tensor) else logits[0]
        return result


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
