"""Depth of each layer of a network, measured on the data that flows through it, not by its name.

The depth of a layer is the number of weighted layers on the longest path from the input up to and including
it. Parallel layers (a residual block's shortcut and its first convolution) have the same depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from bcu_cli.errors import ArchitectureError
from bcu_cli.models.architectures.dispatch import DispatchMode
from bcu_cli.models.hooks import watching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or linear layer.

    Args:
        name: Path of the layer in the network; for reports only.
        module: The layer.
        weights: Weights and biases of the layer by name, a weight before its bias.
        depth: Depth of the layer, from 1.
    """

    name: str
    module: nn.Module
    weights: dict[str, nn.Parameter]
    depth: int

    @property
    def fan_in(self) -> int:
        """Number of inputs that each output is a sum over."""
        weight = next(iter(self.weights.values()))
        if isinstance(self.module, nn.modules.conv._ConvTransposeNd):
            return weight.shape[1] * weight[0, 0].numel()
        return weight[0].numel()


def measure(network: nn.Module, example: Tensor) -> list[Layer]:
    """Find every weighted layer of a network and its depth.

    Args:
        network: Any classifier.
        example: A batch of inputs, ``[N, C, H, W]``.

    Returns:
        The layers in the order of the network's modules; those that the example does not reach get
        the depth of the layer before them.

    Raises:
        ArchitectureError: There is no layer with weights.
    """
    found = {name: module for name, module in network.named_modules() if _is_weighted(module)}
    if not found:
        raise ArchitectureError(
            "the network has neither a convolution nor a linear layer", "only such networks can be cleansed"
        )
    depths = _watch(network, found, example)
    layers, last = [], 1
    for name, module in found.items():
        last = depths.get(name, last)
        weights = {key: p for key, p in module.named_parameters(recurse=False) if p.numel()}
        layers.append(Layer(name=name, module=module, weights=weights, depth=last))
    return layers


def _is_weighted(module: nn.Module) -> bool:
    return isinstance(module, _WEIGHTED) and any(True for _ in module.parameters(recurse=False))


class _Depths(DispatchMode):
    """Gives each tensor the depth of the deepest tensor that it was computed from."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: Any = WeakTensorKeyDictionary()

    def deepest(self, values: Any) -> int:
        tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
        return max((self.of.get(tensor, 0) for tensor in tensors), default=0)

    def mark(self, values: Any, depth: int) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self.of[leaf] = max(depth, self.of.get(leaf, 0))

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        depth = self.deepest((args, kwargs))
        result = func(*args, **(kwargs or {}))
        if depth:
            self.mark(result, depth)
        return result


def _watch(network: nn.Module, layers: dict[str, nn.Module], example: Tensor) -> dict[str, int]:
    """The depth of each layer that the example reaches; a layer used more than once has its first depth."""
    depths: dict[str, int] = {}
    flow = _Depths()

    def note(name: str, inputs: Any, output: Any) -> None:
        depth = flow.deepest(inputs) + 1
        flow.mark(output, depth)
        depths.setdefault(name, depth)

    with watching(((module, name) for name, module in layers.items()), note), torch.no_grad(), flow:
        network(example)
    return depths
