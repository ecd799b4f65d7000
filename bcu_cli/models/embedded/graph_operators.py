"""The operators of ONNX graphs that have no weights, in torch.

They follow the ONNX project's "Operators" from version 7 of the operator set on, which introduced NumPy's
broadcasting. :mod:`bcu_cli.models.embedded.graph` refuses operators, attributes and inputs that are not
listed here, so that nothing is computed differently from the graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Inputs: TypeAlias = list[Tensor | None]
Result: TypeAlias = Tensor | tuple[Tensor, ...]
Compute: TypeAlias = "Callable[[Call], Result]"

_DTYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,  # stored in float16, but networks run in float32
    11: torch.float32,
}
MOST_DIMENSIONS = 16
"""Most dimensions of a tensor, and most numbers of a list of sizes or axes."""
_MOST_SIZE = 2**31


class UnsupportedError(Exception):
    """The graph contains something that bcu does not support; the message names it."""


@dataclass(frozen=True)
class Limits:
    """Limits of one operation.

    Args:
        values: Largest number of values in the result.
        work: Largest number of multiplications.
    """

    values: int
    work: int

    def bounded(self, sizes: Sequence[int], each: int = 1) -> list[int]:
        """Check the sizes of a result before it is computed, and return them as a list.

        Args:
            sizes: Size of each dimension.
            each: Multiplications for each value.

        Raises:
            UnsupportedError: A size is negative, or a limit is exceeded.
        """
        fits = len(sizes) <= MOST_DIMENSIONS and all(0 <= size < _MOST_SIZE for size in sizes)
        if not fits or math.prod(sizes) > self.values:
            raise UnsupportedError(f"a tensor of shape {list(sizes)[:8]}")
        if math.prod(sizes) * each > self.work:
            raise UnsupportedError(f"{math.prod(sizes) * each:,} multiplications at once")
        return list(sizes)


@dataclass(frozen=True)
class Call:
    """One use of an operator.

    Args:
        inputs: The input values; None for an omitted one.
        attributes: Attributes of the node, by name.
        version: Version of the operator set.
        limits: Limits of the operation.
    """

    inputs: Inputs
    attributes: dict[str, Any]
    version: int
    limits: Limits

    @property
    def first(self) -> Tensor:
        """The first input."""
        return self.required(0)

    @property
    def axes(self) -> tuple[int, ...] | None:
        """The axes, from the attribute or, in newer versions, the second input; None where there are none."""
        if "axes" in self.attributes:
            return tuple(self.attribute_ints("axes"))
        return None if self.optional(1) is None else tuple(self.ints(1))

    def required(self, place: int) -> Tensor:
        """A required input."""
        value = self.optional(place)
        if value is None:
            raise UnsupportedError("an operator without one of its inputs")
        return value

    def optional(self, place: int) -> Tensor | None:
        """An optional input."""
        return self.inputs[place] if place < len(self.inputs) else None

    def ints(self, place: int) -> list[int]:
        """A required input that is a short list of whole numbers of limited size."""
        value = self.required(place)
        if value.is_floating_point() or value.numel() > MOST_DIMENSIONS:
            raise UnsupportedError(f"an input of {value.numel()} numbers for sizes or axes")
        return [int(one) for one in value.reshape(-1).tolist()]

    def attribute_int(self, name: str, default: int) -> int:
        """An attribute that is a whole number, such as an axis."""
        value = self.attributes.get(name, default)
        if type(value) is not int or abs(value) >= _MOST_SIZE:
            raise UnsupportedError(f"a {name} of {str(value)[:40]}")
        return value

    def attribute_ints(self, name: str) -> list[int]:
        """An attribute that is a short list of whole numbers."""
        value = self.attributes[name]
        if not isinstance(value, list) or len(value) > MOST_DIMENSIONS or {*map(type, value)} - {int}:
            raise UnsupportedError(f"{name} of {str(value)[:40]}")
        return value

    def attribute_float(self, name: str, default: float) -> float:
        """An attribute that is a floating-point number."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise UnsupportedError(f"a {name} of {str(value)[:40]}")
        return float(value)


@dataclass(frozen=True)
class Operator:
    """The implementation of one operator.

    Args:
        compute: Maps a call to its result.
        attributes: Names of the supported attributes.
    """

    compute: Compute
    attributes: frozenset[str]


OPERATORS: dict[str, Operator] = {}
"""The operators by their names in ONNX's default domain."""


def _defines(name: str, *attributes: str) -> Callable[[Compute], Compute]:
    def register(compute: Compute) -> Compute:
        OPERATORS[name] = Operator(compute, frozenset(attributes))
        return compute

    return register


def _broadcast(c: Call, *tensors: Tensor) -> list[int]:
    """The broadcast shape of tensors, checked against the limits."""
    shape: list[int] = list(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))  # type: ignore[no-untyped-call]
    return c.limits.bounded(shape)


def _on_one_device(tensors: list[Tensor]) -> list[Tensor]:
    """Bring sizes, computed on the CPU, to the device of the other tensors; single numbers may stay."""
    elsewhere = next((each.device for each in tensors if each.device.type != "cpu"), None)
    if elsewhere is None:
        return tensors
    return [each.to(elsewhere, non_blocking=True) if each.dim() else each for each in tensors]


def _elementwise(function: Callable[..., Tensor], number: int | None, c: Call) -> Result:
    """Apply a function to broadcast inputs, of which there are ``number`` (None: at least one)."""
    if not c.inputs or number not in {None, len(c.inputs)}:
        raise UnsupportedError(f"an operator with {len(c.inputs)} inputs")
    tensors = _on_one_device([c.required(place) for place in range(len(c.inputs))])
    _broadcast(c, *tensors)
    return function(*tensors)


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """The quotient; that of whole numbers is rounded towards zero, and refused where it would overflow."""
    if x.is_floating_point() or y.is_floating_point():
        return x / y
    least = torch.iinfo(x.dtype).min if x.dtype != torch.bool else 0
    if bool((y == 0).any()) or bool(((x == least) & (y == -1)).any()):
        raise UnsupportedError("a division of whole numbers by zero, or beyond their range")
    return torch.div(x, y, rounding_mode="trunc")


@_defines("MatMul")
def _matmul(c: Call) -> Result:
    x, y = c.required(0), c.required(1)
    if min(x.dim(), y.dim()) < 1:
        raise UnsupportedError("a product of matrices that are none")
    outer: list[int] = list(torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]))  # type: ignore[no-untyped-call]
    sizes = [*outer, *x.shape[-2:-1], *(y.shape[-1:] if y.dim() > 1 else ())]
    c.limits.bounded(sizes, x.shape[-1])
    return torch.matmul(x, y)


def _pooled(function: Callable[..., Tensor], c: Call) -> Result:
    """Pool each channel of images to one value."""
    if c.first.dim() < 3:
        raise UnsupportedError("a pooling of what are no images")
    return function(c.first, tuple(range(2, c.first.dim())), keepdim=True)


_POOLINGS: dict[str, Callable[..., Tensor]] = {"GlobalAveragePool": torch.mean, "GlobalMaxPool": torch.amax}
for _name, _pooling in _POOLINGS.items():
    _defines(_name)(partial(_pooled, _pooling))

_OF_MANY: dict[str, Callable[..., Tensor]] = {"Max": torch.maximum, "Min": torch.minimum}
for _name, _pairwise in _OF_MANY.items():
    _defines(_name)(partial(_elementwise, lambda *x, pairwise=_pairwise: reduce(pairwise, x), None))

_OF_TWO: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divide,
    "Pow": torch.pow,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Equal": torch.eq,
}
for _name, _function in _OF_TWO.items():
    _defines(_name)(partial(_elementwise, _function, 2))
_defines("Where")(partial(_elementwise, torch.where, 3))

_OF_ONE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Erf": torch.erf,
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
}
"""The operators without attributes."""
for _name, _function in _OF_ONE.items():
    _defines(_name)(partial(_elementwise, _function, 1))


@_defines("LeakyRelu", "alpha")
def _leaky_relu(c: Call) -> Result:
    result: Tensor = F.leaky_relu(c.first, c.attribute_float("alpha", 0.01))
    return result


@_defines("HardSigmoid", "alpha", "beta")
def _hard_sigmoid(c: Call) -> Result:
    slope, middle = c.attribute_float("alpha", 0.2), c.attribute_float("beta", 0.5)
    return (c.first * slope + middle).clamp(0, 1)


@_defines("Gelu", "approximate")
def _gelu(c: Call) -> Result:
    kind = c.attributes.get("approximate", "none")
    if kind not in ("none", "tanh"):
        raise UnsupportedError(f"a Gelu that is {str(kind)[:40]}")
    return F.gelu(c.first, approximate=kind)


@_defines("Clip", "min", "max")
def _clip(c: Call) -> Result:
    least, most = (_bound(c, name, place) for place, name in enumerate(("min", "max"), 1))
    return c.first if least is None and most is None else torch.clamp(c.first, least, most)


def _bound(c: Call, name: str, place: int) -> float | None:
    """A bound of a Clip, from an attribute or an input; None where there is none."""
    if name in c.attributes:
        return c.attribute_float(name, 0.0)
    value = c.optional(place)
    if value is not None and value.numel() != 1:
        raise UnsupportedError(f"a Clip to {value.numel()} numbers")
    return None if value is None else value.item()


@_defines("Softmax", "axis")
def _softmax(c: Call) -> Result:
    return _over_axis(torch.softmax, c)


@_defines("LogSoftmax", "axis")
def _log_softmax(c: Call) -> Result:
    return _over_axis(torch.log_softmax, c)


def _over_axis(function: Callable[..., Tensor], c: Call) -> Tensor:
    """Apply a function along an axis; before version 13, along this and all later axes, flattened."""
    x = c.first
    if c.version >= 13:
        return function(x, c.attribute_int("axis", -1))
    axis = c.attribute_int("axis", 1)
    return function(x.flatten(axis), axis).reshape(x.shape) if axis >= 0 else function(x, axis)


@_defines("Dropout", "ratio", "seed")
def _dropout(c: Call) -> Result:
    return c.first  # evaluation mode


@_defines("Cast", "to", "saturate", "round_mode")
def _cast(c: Call) -> Result:
    kind = c.attribute_int("to", 0)
    if kind not in _DTYPES:
        raise UnsupportedError(f"a cast to type {kind}")
    return c.first.to(_DTYPES[kind])


@_defines("Flatten", "axis")
def _flatten(c: Call) -> Result:
    tensor, axis = c.first, c.attribute_int("axis", 1)
    if not -tensor.dim() <= axis <= tensor.dim():
        raise UnsupportedError(f"an axis {axis} of {tensor.dim()} dimensions")
    axis = axis + tensor.dim() if axis < 0 else axis
    return tensor.reshape(math.prod(tensor.shape[:axis]), math.prod(tensor.shape[axis:]))


@_defines("Reshape", "allowzero")
def _reshape(c: Call) -> Result:
    tensor = c.first
    sizes = [
        tensor.shape[i] if size == 0 and not c.attributes.get("allowzero") else size
        for i, size in enumerate(c.ints(1))
    ]
    if not all(-1 <= size < _MOST_SIZE for size in sizes) or sizes.count(-1) > 1:
        raise UnsupportedError(f"a tensor of shape {sizes}")
    return tensor.reshape(sizes)


@_defines("Transpose", "perm")
def _transpose(c: Call) -> Result:
    tensor = c.first
    order = c.attribute_ints("perm") if "perm" in c.attributes else list(range(tensor.dim()))[::-1]
    return tensor.permute(order)


@_defines("Squeeze", "axes")
def _squeeze(c: Call) -> Result:
    axes = c.axes
    return c.first.squeeze() if axes is None else c.first.squeeze(axes)


@_defines("Unsqueeze", "axes")
def _unsqueeze(c: Call) -> Result:
    tensor, axes = c.first, c.axes or ()
    dimensions = tensor.dim() + len(axes)
    if dimensions > MOST_DIMENSIONS or not all(-dimensions <= axis < dimensions for axis in axes):
        raise UnsupportedError(f"new axes {list(axes)}")
    for axis in sorted(axis % dimensions for axis in axes):
        tensor = tensor.unsqueeze(axis)
    return tensor


@_defines("Concat", "axis")
def _concat(c: Call) -> Result:
    tensors = _on_one_device([c.required(place) for place in range(len(c.inputs))])
    c.limits.bounded([sum(tensor.numel() for tensor in tensors)])
    return torch.cat(tensors, c.attribute_int("axis", 0))


@_defines("Split", "axis", "split", "num_outputs")
def _split(c: Call) -> Result:
    tensor, axis = c.first, c.attribute_int("axis", 0)
    parts = c.attributes["outputs"]  # number of outputs, added by bcu_cli.models.embedded.graph
    if c.attributes.get("split"):
        sizes = c.attribute_ints("split")
    elif c.optional(1) is not None:
        sizes = c.ints(1)
    else:
        size = -(-tensor.shape[axis] // parts)
        sizes = [max(0, min(size, tensor.shape[axis] - i * size)) for i in range(parts)]
    if len(sizes) != parts or min(sizes) < 0:
        raise UnsupportedError(f"a split into {sizes[:8]} for {parts} outputs")
    return torch.split(tensor, sizes, axis)


@_defines("Slice", "starts", "ends", "axes")
def _slice(c: Call) -> Result:
    tensor = c.first
    if c.version < 10:
        starts, ends = c.attribute_ints("starts"), c.attribute_ints("ends")
    else:
        starts, ends = c.ints(1), c.ints(2)
    if c.attributes.get("axes"):
        axes = c.attribute_ints("axes")
    else:
        axes = c.ints(3) if c.optional(3) is not None else list(range(len(starts)))
    steps = c.ints(4) if c.optional(4) is not None else [1] * len(starts)
    if any(step < 1 for step in steps):
        raise UnsupportedError("a slice that runs backwards")
    index = [slice(None)] * tensor.dim()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return tensor[tuple(index)]


@_defines("Gather", "axis")
def _gather(c: Call) -> Result:
    tensor, index, axis = c.first, c.required(1), c.attribute_int("axis", 0)
    if index.is_floating_point() or index.dtype == torch.bool:
        raise UnsupportedError("a Gather at places that are no whole numbers")
    size = tensor.shape[axis]
    index = torch.where(index < 0, index + size, index).long()
    if bool(((index < 0) | (index >= size)).any()):
        raise UnsupportedError(f"a Gather beyond {size} values")
    c.limits.bounded([tensor.numel() // max(1, size) * index.numel()])
    flat = tensor.index_select(axis, index.reshape(-1).to(tensor.device, non_blocking=True))
    axis %= tensor.dim()
    return flat.reshape([*tensor.shape[:axis], *index.shape, *tensor.shape[axis + 1 :]])


@_defines("Shape", "start", "end")
def _shape(c: Call) -> Result:
    end = c.attribute_int("end", 0) if "end" in c.attributes else None
    return torch._shape_as_tensor(c.first)[c.attribute_int("start", 0) : end]  # a trace records it


@_defines("ConstantOfShape", "value")
def _constant_of_shape(c: Call) -> Result:
    value = c.attributes.get("value", torch.zeros(1))
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UnsupportedError("a ConstantOfShape of other than one number")
    return value.to(c.first.device).reshape(()).expand(c.limits.bounded(c.ints(0))).clone()


@_defines("Expand")
def _expand(c: Call) -> Result:
    wanted, own = c.ints(1), list(c.first.shape)
    own = [1] * (len(wanted) - len(own)) + own
    ends = own[len(own) - len(wanted) :]  # -1 keeps the tensor's size: graph_batch sets it for the batch axis
    sizes = c.limits.bounded([mine if size == -1 else size for size, mine in zip(wanted, ends, strict=True)])
    shape: list[Any] = list(torch.broadcast_shapes(c.first.shape, tuple(sizes)))  # type: ignore[no-untyped-call]
    c.limits.bounded(shape)
    if torch._C._get_tracing_state() is not None:  # a trace must keep computed sizes, not constants
        skipped = len(shape) - len(wanted)
        for place, size in enumerate(wanted, skipped):
            shape[place] = c.required(1)[place - skipped] if size == shape[place] else -1
    return c.first.expand(shape)


def _reduced(function: Callable[..., Tensor], c: Call) -> Tensor:
    axes = c.axes
    if not axes and c.attributes.get("noop_with_empty_axes"):
        return c.first
    return function(c.first, axes or tuple(range(c.first.dim())), bool(c.attribute_int("keepdims", 1)))


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
}
for _name, _reduction in _REDUCTIONS.items():
    _defines(_name, "axes", "keepdims", "noop_with_empty_axes")(partial(_reduced, _reduction))


@_defines("LayerNormalization", "axis", "epsilon", "stash_type")
def _layer_norm(c: Call) -> Result:
    tensor = c.first
    sizes = tensor.shape[c.attribute_int("axis", -1) :]
    return F.layer_norm(tensor, sizes, c.required(1), c.optional(2), c.attribute_float("epsilon", 1e-5))
