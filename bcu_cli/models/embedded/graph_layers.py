"""The operators of ONNX graphs that have weights or sliding windows, as modules of torch.

Weights are in modules that the defenses support: convolutions, linear layers and batch normalisation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bcu_cli.models.embedded.graph_operators import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bcu_cli.checkpoints import Node
    from bcu_cli.models.embedded.graph_operators import Limits

_WINDOW = frozenset({"kernel_shape", "strides", "pads", "auto_pad", "dilations"})
_MOST_PADDING, _MOST_SIDE = 1024, 4096
"""Limits of a window in pixels: padding on each side, and size, stride or dilation."""


def layer_of(node: Node, tensors: dict[str, Tensor]) -> nn.Module | None:
    """The module that computes a node from its first input; None for other operators.

    Args:
        node: The node.
        tensors: The constants of the graph.

    Raises:
        UnsupportedError: The weights or attributes are not supported by torch's modules.
    """
    name = node.operator.removeprefix("ai.onnx::")
    if name not in _MAKERS:
        return None
    make, attributes = _MAKERS[name]
    if unsupported := set(node.attributes) - attributes:
        raise UnsupportedError(f"{name} with {sorted(unsupported)[0]}")
    weights = [tensors.get(value) for value in node.inputs[1:]]
    if name == "MatMul" and (weights[0] is None or weights[0].dim() != 2):
        return None  # the second factor is no matrix of weights
    if any(weight is None and value for weight, value in zip(weights, node.inputs[1:], strict=True)):
        raise UnsupportedError(f"{name} with weights that are computed")
    return make(node.attributes, [None if weight is None else weight.float() for weight in weights])


class _Padding(nn.Module):
    """Pads images by a window's ``auto_pad``, or by different numbers on opposite sides."""

    def __init__(self, a: dict[str, Any], kernel: list[int], value: float) -> None:
        super().__init__()
        self.kernel = [d * (k - 1) + 1 for k, d in zip(kernel, _pair(a, "dilations"), strict=True)]
        self.strides = _pair(a, "strides")
        self.auto, self.pads, self.value = a.get("auto_pad", "NOTSET"), a.get("pads", [0] * 4), value

    def forward(self, images: Tensor) -> Tensor:
        top, left, bottom, right = self.around(images.shape[2:])
        return F.pad(images, (left, right, top, bottom), value=self.value)

    def around(self, sides: Sequence[int]) -> tuple[int, int, int, int]:
        """Pixels to add above, left, below and right of images.

        Args:
            sides: Rows and columns of the images.
        """
        top, left, bottom, right = self.pads
        if self.auto in {"SAME_UPPER", "SAME_LOWER"}:
            total = [
                max(0, (-(-size // s) - 1) * s + k - size)
                for size, s, k in zip(sides, self.strides, self.kernel, strict=True)
            ]
            less, more = [t // 2 for t in total], [t - t // 2 for t in total]
            (top, left), (bottom, right) = (less, more) if self.auto == "SAME_UPPER" else (more, less)
        if max(top, left, bottom, right) > _MOST_PADDING:
            raise UnsupportedError(f"a padding of {[top, left, bottom, right]}")
        return top, left, bottom, right


class _Composite(nn.Sequential):
    """Modules that run one after another and compute one operator."""


def _window(a: dict[str, Any], kernel: list[int], value: float) -> tuple[_Padding | None, tuple[int, int]]:
    """The padding module that a window needs in front, if any, and the padding that torch's layer does."""
    pads = a.get("pads", [0] * 4)
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"a padding that is {str(a['auto_pad'])[:40]}")
    if not isinstance(pads, list) or {*map(type, pads)} - {int}:
        raise UnsupportedError(f"a padding of {str(pads)[:40]}")
    if len(kernel) != 2 or len(pads) != 4:
        raise UnsupportedError("a window that is not over two dimensions")
    if not all(0 <= pad <= _MOST_PADDING for pad in pads):
        raise UnsupportedError(f"a padding of {pads}")
    if a.get("auto_pad", "NOTSET") in {"NOTSET", "VALID"} and pads[:2] == pads[2:]:
        return None, (0, 0) if a.get("auto_pad") == "VALID" else (pads[0], pads[1])
    return _Padding(a, kernel, value), (0, 0)


def _pair(a: dict[str, Any], name: str) -> tuple[int, int]:
    """An attribute of a two-dimensional window: two numbers from 1 to ``_MOST_SIDE``, 1 by default."""
    value = a.get(name, [1, 1])
    if not isinstance(value, list) or len(value) != 2:
        raise UnsupportedError(f"{name} of {str(value)[:40]}")
    if not all(type(one) is int and 1 <= one <= _MOST_SIDE for one in value):
        raise UnsupportedError(f"{name} of {value}")
    return value[0], value[1]


def _number(a: dict[str, Any], name: str, default: float) -> float:
    """A numeric attribute."""
    value = a.get(name, default)
    if not isinstance(value, int | float):
        raise UnsupportedError(f"a {name} of {str(value)[:40]}")
    return value


def _joined(before: nn.Module | None, layer: nn.Module) -> nn.Module:
    return layer if before is None else _Composite(before, layer)


def _convolution(a: dict[str, Any], weights: list[Tensor | None]) -> nn.Module:
    weight, bias = (*weights, None)[:2]
    if weight is None or weight.dim() != 4:
        raise UnsupportedError("a convolution that is not over two dimensions")
    groups, kernel = int(_number(a, "group", 1)), list(weight.shape[2:])
    if not 1 <= groups <= len(weight) or not all(1 <= side <= _MOST_SIDE for side in kernel):
        raise UnsupportedError(f"a convolution of {groups} groups with windows of {kernel}")
    before, padding = _window(a, kernel, 0.0)
    layer = nn.Conv2d(
        *(weight.shape[1] * groups, weight.shape[0], kernel),  # type: ignore[arg-type]
        stride=_pair(a, "strides"),
        padding=padding,
        dilation=_pair(a, "dilations"),
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    return _joined(before, _filled(layer, weight=weight, bias=bias))


def _gemm(a: dict[str, Any], weights: list[Tensor | None]) -> nn.Module:
    """``alpha * x @ w (transposed or not) + beta * b`` as a linear layer; x is not transposed."""
    weight, bias = (*weights, None)[:2]
    if weight is None or weight.dim() != 2 or _number(a, "transA", 0):
        raise UnsupportedError("a Gemm that is no linear layer")
    weight = (weight if _number(a, "transB", 0) else weight.T) * _number(a, "alpha", 1.0)
    if bias is not None:
        bias = (bias * _number(a, "beta", 1.0)).broadcast_to(1, weight.shape[0])[0]
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return _filled(layer, weight=weight, bias=bias)


def _batch_norm(a: dict[str, Any], weights: list[Tensor | None]) -> nn.Module:
    if len(weights) != 4 or any(weight is None for weight in weights):
        raise UnsupportedError("a BatchNormalization without one of its inputs")
    names = ("weight", "bias", "running_mean", "running_var")
    layer = nn.BatchNorm2d(
        len(weights[0]),  # type: ignore[arg-type]
        eps=_number(a, "epsilon", 1e-5),
        momentum=1 - _number(a, "momentum", 0.9) or None,  # ONNX has 1 for a layer that averages over all
        device="meta",
    )
    return _filled(layer, **dict(zip(names, weights, strict=True)), num_batches_tracked=torch.tensor(0))


def _max_pool(a: dict[str, Any], weights: list[Tensor | None]) -> nn.Module:  # noqa: ARG001 - it has none
    return _pool(nn.MaxPool2d, a, -torch.inf, dilation=_pair(a, "dilations"))


def _average_pool(a: dict[str, Any], weights: list[Tensor | None]) -> nn.Module:  # noqa: ARG001
    counts_padding = bool(a.get("count_include_pad", 0))
    layer = _pool(nn.AvgPool2d, a, 0.0, count_include_pad=counts_padding)
    if isinstance(layer, _Composite) and not counts_padding:
        raise UnsupportedError("an AveragePool with uneven padding")
    if _pair(a, "dilations") != (1, 1):
        raise UnsupportedError("an AveragePool with dilation")
    return layer


def _pool(kind: Callable[..., nn.Module], a: dict[str, Any], value: float, **settings: Any) -> nn.Module:
    """A pooling, after a padding by ``value`` where torch's layer cannot pad so."""
    if "kernel_shape" not in a:
        raise UnsupportedError("a pooling that lacks something: its window")
    kernel, ceil_mode = _pair(a, "kernel_shape"), bool(a.get("ceil_mode", 0))
    before, padding = _window(a, list(kernel), value)
    layer = kind(kernel, stride=_pair(a, "strides"), padding=padding, ceil_mode=ceil_mode, **settings)
    return _joined(before, layer)


def refuse_excess(layer: nn.Module, shape: Sequence[int], limits: Limits) -> Sequence[int]:
    """The shape of a layer's output, computed and checked before the layer runs.

    Args:
        layer: A layer of :func:`layer_of`.
        shape: Shape of the input.
        limits: Limits of the output's size and of the work.

    Raises:
        UnsupportedError: The layer does not take such tensors, or a limit is exceeded.
    """
    if isinstance(layer, _Composite):
        for part in layer:
            shape = refuse_excess(part, shape, limits)
        return shape
    if isinstance(layer, nn.Linear):
        return limits.bounded([*shape[:-1], layer.out_features], layer.in_features)
    if len(shape) != 4:
        raise UnsupportedError(f"a layer for images with a tensor of {len(shape)} dimensions")
    if isinstance(layer, _Padding):
        top, left, bottom, right = layer.around(shape[2:])
        return limits.bounded([*shape[:2], shape[2] + top + bottom, shape[3] + left + right])
    if isinstance(layer, nn.Conv2d):
        work = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        return limits.bounded([shape[0], layer.out_channels, *_slid(layer, shape)], work)
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        return limits.bounded([*shape[:2], *_slid(layer, shape)], math.prod(_two(layer.kernel_size)))
    return limits.bounded(shape)


def _slid(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, shape: Sequence[int]) -> list[int]:
    """Upper bounds of the rows and columns that a sliding window gives for images of a shape."""
    each = zip(
        shape[2:],
        _two(layer.kernel_size),
        _two(layer.stride),
        _two(layer.padding),
        _two(getattr(layer, "dilation", 1)),
        strict=True,
    )
    sides = [
        (size + 2 * pad - dilation * (side - 1) - 1, stride) for size, side, stride, pad, dilation in each
    ]
    if min(span for span, _ in sides) < 0:
        raise UnsupportedError(f"a window that is larger than images of {list(shape[2:])}")
    return [-(-span // stride) + 1 for span, stride in sides]


def _two(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _filled(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Copy weights, which must have the layer's shapes, into the layer."""
    state = {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}
    try:
        layer.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UnsupportedError(f"{type(layer).__name__} with weights of shapes that do not fit") from error
    return layer.requires_grad_()


_MAKERS: dict[str, tuple[Callable[[dict[str, Any], list[Tensor | None]], nn.Module], frozenset[str]]] = {
    "Conv": (_convolution, _WINDOW | {"group"}),
    "Gemm": (_gemm, frozenset({"alpha", "beta", "transA", "transB"})),
    "MatMul": (_gemm, frozenset()),
    "BatchNormalization": (_batch_norm, frozenset({"epsilon", "momentum", "training_mode", "spatial"})),
    "MaxPool": (_max_pool, _WINDOW | {"ceil_mode", "storage_order"}),
    "AveragePool": (_average_pool, _WINDOW | {"ceil_mode", "count_include_pad"}),
}
LAYERS = {name: attributes for name, (_, attributes) in _MAKERS.items()}
"""The supported attributes of each operator that may be a layer, by its name in ONNX's default domain."""
