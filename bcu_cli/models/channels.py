"""The channels of a network: each convolution, the norm behind it, and what one channel can be scaled by.

Which norm takes the output of which convolution is seen from the data that flows; names play no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError

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
        convolution: Its weight is ``[C, ...]``.
        norm: The BatchNorm or GroupNorm that takes its output, or None.
        weight_name: The path of what scales each channel, ``[C, ...]``: the norm's weight; the convolution's
            own where there is no norm, or one without weights.
        bias_name: The path of what is added to each, ``[C]``, beside it; None where there is none.
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
        """C."""
        weight: Any = self.convolution.weight
        return int(weight.shape[0])

    @torch.no_grad()
    def zero_out(self, index: Tensor) -> None:
        """Let some channels, int64 ``[M]``, be 0 for every image, in the convolution and in the norm.

        Behind a GroupNorm without weights they are what the others of their group make them.
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
        """Let some channels, int64 ``[M]``, be the same for every image: what scales them becomes 0."""
        module: Any = self.scaled
        module.weight[index] = 0


@torch.no_grad()
def convolutions_with_norms(network: nn.Module, example: Tensor) -> list[tuple[nn.Module, nn.Module | None]]:
    """Each convolution, in the order of use, with the norm that takes its output, or None.

    Args:
        network: In eval mode.
        example: A batch that it takes.
    """
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # by the id of the output, which is kept alive
    pairs: dict[nn.Module, nn.Module | None] = {}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, _CONVOLUTIONS):
            pairs.setdefault(module, None)
            made[id(output)] = (module, output)
        elif id(inputs[0]) in made:
            pairs[made[id(inputs[0])][0]] = module

    watched = [m for m in network.modules() if isinstance(m, _CONVOLUTIONS + _NORMS)]
    handles = [module.register_forward_hook(watch) for module in watched]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    return list(pairs.items())


def find_channels(network: nn.Module, example: Tensor) -> list[Channels]:
    """The channels of every convolution that the example passes, in the order of use.

    Where several convolutions share what scales their channels, the first stands for all.

    Args:
        network: In eval mode.
        example: A batch that it takes.

    Raises:
        ArchitectureError: It has fewer than two convolutions, so that it is no convolutional network.
    """
    names = {module: name for name, module in network.named_modules()}
    each = [
        _channels(convolution, norm, names) for convolution, norm in convolutions_with_norms(network, example)
    ]
    found = list({channels.weight_name: channels for channels in reversed(each)}.values())[::-1]
    if len(found) < _FEWEST:
        raise ArchitectureError(
            f"there is nothing to prune: the network has {len(found)} convolution{'s' * (len(found) != 1)}",
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
    """How far each output channel can be moved by its input at most, ``[C]`` (CLP, eq. 5 and 9).

    The spectral norm of its kernel, as a matrix of input channels by taps, times what the BatchNorm behind it
    multiplies by. What a GroupNorm multiplies by depends on the image and is left out.
    """
    weight: Any = convolution.weight
    kernels = weight.detach().float().flatten(2)  # [out, in, taps]
    bounds: Tensor = torch.linalg.matrix_norm(kernels, 2)
    if isinstance(norm, BATCH_NORMS) and norm.running_var is not None:
        scale = torch.ones_like(bounds) if norm.weight is None else norm.weight.detach().float().abs()
        bounds = bounds * scale / (norm.running_var.float() + norm.eps).sqrt()
    return bounds.cpu()


def pruned_report(pruned: Sequence[tuple[Channels, Tensor]]) -> list[dict[str, Any]]:
    """What was pruned as plain values: for each convolution its channels and which of them are gone."""
    return [
        {"name": channels.name, "channels": channels.count, "pruned": index.tolist()}
        for channels, index in pruned
    ]
