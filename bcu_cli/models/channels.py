"""The channels of a network: each convolution, its norm, and the weight that scales each channel.

A forward pass shows which norm takes the output of which convolution; names of layers are not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError
from bcu_cli.models.hooks import watching
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORMS = (*BATCH_NORMS, nn.GroupNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class Channels:
    """The output channels of one convolution.

    Attributes:
        name: The convolution's path in the network; for reports only.
        convolution: The convolution, with a weight ``[C, ...]``.
        norm: The BatchNorm or GroupNorm that takes its output, or None.
        weight_name: The path of the weight that scales each channel, ``[C, ...]``: the norm's weight, or the
            convolution's if there is no norm or it has no weight.
        bias_name: The path of the bias beside that weight, ``[C]``; None where there is none.
    """

    name: str
    convolution: nn.Module
    norm: nn.Module | None
    weight_name: str
    bias_name: str | None

    @property
    def scaled(self) -> nn.Module:
        """The module whose weight scales the channels: the norm, or the convolution."""
        if self.norm is not None and self.norm.weight is not None:
            return self.norm
        return self.convolution

    @property
    def count(self) -> int:
        """Number of output channels, C."""
        weight: Any = self.convolution.weight
        return int(weight.shape[0])

    @torch.no_grad()
    def zero_out(self, index: Tensor) -> None:
        """Make channels, int64 ``[M]``, 0 for every image, in the convolution and in the norm.

        Behind a GroupNorm without weights, their values still depend on the other channels of the group.
        """
        convolution: Any = self.convolution
        norm: Any = self.norm
        for module in (convolution, norm):
            for tensor in (getattr(module, "weight", None), getattr(module, "bias", None)):
                if tensor is not None:
                    tensor[index] = 0
        if norm is not None and norm.weight is None and getattr(norm, "running_mean", None) is not None:
            norm.running_mean[index] = 0

    @torch.no_grad()
    def zero_scale(self, index: Tensor) -> None:
        """Make channels, int64 ``[M]``, constant over images: the weights that scale them become 0."""
        module: Any = self.scaled
        module.weight[index] = 0


@torch.no_grad()
def convolutions_with_norms(network: nn.Module, example: Tensor) -> list[tuple[nn.Module, nn.Module | None]]:
    """Each convolution, in the order of use, with the norm that takes its output, or None.

    Args:
        network: The network, in eval mode.
        example: A batch of normalised images.
    """
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # by the id of the output, which stays referenced
    pairs: dict[nn.Module, nn.Module | None] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, _CONVOLUTIONS):
            pairs.setdefault(module, None)
            made[id(output)] = (module, output)
        elif id(inputs[0]) in made:
            pairs[made[id(inputs[0])][0]] = module

    with watching(((m, m) for m in network.modules() if isinstance(m, _CONVOLUTIONS + _NORMS)), note):
        network(example)
    return list(pairs.items())


def find_channels(network: nn.Module, example: Tensor) -> list[Channels]:
    """The channels of every convolution that the example passes, in the order of use.

    Of several convolutions that share the weight that scales their channels, the first is given.

    Args:
        network: The network, in eval mode.
        example: A batch of normalised images.

    Raises:
        ArchitectureError: The network has fewer than two convolutions.
    """
    names = {module: name for name, module in network.named_modules()}
    each = [
        _channels(convolution, norm, names) for convolution, norm in convolutions_with_norms(network, example)
    ]
    found = list({channels.weight_name: channels for channels in reversed(each)}.values())[::-1]
    if len(found) < _FEWEST:
        raise ArchitectureError(
            f"there is nothing to prune: the network has {number_of(len(found), 'convolution')}",
            "pruning works on the channels of convolutions; use --method bcu or ft",
        )
    return found


def _channels(convolution: nn.Module, norm: nn.Module | None, names: dict[nn.Module, str]) -> Channels:
    scaled = norm if norm is not None and norm.weight is not None else convolution
    prefix = names[scaled] + "." if names[scaled] else ""
    return Channels(
        name=names[convolution],
        convolution=convolution,
        norm=norm,
        weight_name=f"{prefix}weight",
        bias_name=None if scaled.bias is None else f"{prefix}bias",
    )


@torch.no_grad()
def lipschitz_bounds(convolution: nn.Module, norm: nn.Module | None) -> Tensor:
    """Upper bounds of the Lipschitz constant of each output channel, ``[C]`` (CLP, eq. 5 and 9).

    A bound is the spectral norm of the channel's kernel, as a matrix of input channels by taps, times the
    factor of the BatchNorm behind it. The factor of a GroupNorm depends on the image and is left out.
    """
    weight: Any = convolution.weight
    kernels = weight.detach().float().flatten(2)  # [out, in, taps]
    bounds: Tensor = torch.linalg.matrix_norm(kernels, 2)
    if isinstance(norm, BATCH_NORMS) and norm.running_var is not None:
        scale = torch.ones_like(bounds) if norm.weight is None else norm.weight.detach().float().abs()
        bounds = bounds * scale / (norm.running_var.float() + norm.eps).sqrt()
    return bounds.cpu()


def pruned_report(pruned: Sequence[tuple[Channels, Tensor]]) -> list[dict[str, Any]]:
    """The pruned channels of each convolution, as plain values for a report."""
    return [
        {"name": channels.name, "channels": channels.count, "pruned": index.tolist()}
        for channels, index in pruned
    ]
