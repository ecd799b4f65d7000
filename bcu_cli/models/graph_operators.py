"""What the operators of ONNX graphs compute that have no weights of their own, in torch.

After the ONNX project's "Operators" (from version 7 of the operator set on, since which they broadcast as
NumPy does). An operator, an attribute or an input that stands here nowhere is refused by
:mod:`bcu_cli.models.graph`, so that nothing is computed otherwise than the graph says.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

Inputs: TypeAlias = list[Tensor | None]
Result: TypeAlias = Tensor | tuple[Tensor, ...]
Compute: TypeAlias = "Callable[[Call], Result]"

_DTYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,  # a network is run in float32, whatever it was stored in
    11: torch.float32,
}
_MOST_VALUES = 2**28
"""Of what an operator makes that is told a size: a gigabyte of float32."""


class UnsupportedError(Exception):
    """The graph has something in it that bcu does not compute; the text says what."""


@dataclass(frozen=True)
class Call:
    """One use of an operator.

    Args:
        inputs: None where one is left out.
        told: The attributes.
        version: Of the operator set.
    """

    inputs: Inputs
    told: dict[str, Any]
    version: int

    @property
    def first(self) -> Tensor:
        """The first input."""
        return self.need(0)

    @property
    def axes(self) -> tuple[int, ...] | None:
        """Of an attribute or, in newer versions, of the second input; None where there are none."""
        if "axes" in self.told:
            return tuple(self.told["axes"])
        return None if self.optional(1) is None else tuple(self.ints(1))

    def need(self, place: int) -> Tensor:
        """An input that must be there."""
        value = self.optional(place)
        if value is None:
            raise UnsupportedError("an operator without one of its inputs")
        return value

    def optional(self, place: int) -> Tensor | None:
        """An input that may be left out."""
        return self.inputs[place] if place < len(self.inputs) else None

    def ints(self, place: int) -> list[int]:
        """The whole numbers of an input that must be there."""
        return [int(value) for value in self.need(place).reshape(-1).tolist()]


@dataclass(frozen=True)
class Operator:
    """How one operator is computed.

    Args:
        compute: A use of it to its result.
        attributes: Those that ``compute`` heeds.
    """

    compute: Compute
    attributes: frozenset[str]


OPERATORS: dict[str, Operator] = {}
"""By their names in ONNX's own domain."""


def _defines(name: str, *attributes: str) -> Callable[[Compute], Compute]:
    def register(compute: Compute) -> Compute:
        OPERATORS[name] = Operator(compute, frozenset(attributes))
        return compute

    return register


def _of_inputs(function: Callable[..., Tensor], c: Call) -> Result:
    return function(*c.inputs)


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


_SIMPLE: dict[str, Callable[..., Any]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divide,
    "Pow": torch.pow,
    "MatMul": torch.matmul,
    "Max": lambda *x: reduce(torch.maximum, x),
    "Min": lambda *x: reduce(torch.minimum, x),
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
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Identity": lambda x: x,
    "Where": torch.where,
    "Equal": torch.eq,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True),
}
"""Those that are told nothing but their inputs."""
for _name, _function in _SIMPLE.items():
    _defines(_name)(partial(_of_inputs, _function))


@_defines("LeakyRelu", "alpha")
def _leaky_relu(c: Call) -> Result:
    result: Tensor = F.leaky_relu(c.first, c.told.get("alpha", 0.01))
    return result


@_defines("HardSigmoid", "alpha", "beta")
def _hard_sigmoid(c: Call) -> Result:
    slope, middle = float(c.told.get("alpha", 0.2)), float(c.told.get("beta", 0.5))
    return (c.first * slope + middle).clamp(0, 1)


@_defines("Gelu", "approximate")
def _gelu(c: Call) -> Result:
    return F.gelu(c.first, approximate=c.told.get("approximate", "none"))


@_defines("Clip", "min", "max")
def _clip(c: Call) -> Result:
    least, most = c.told.get("min", c.optional(1)), c.told.get("max", c.optional(2))
    return c.first if least is None and most is None else torch.clamp(c.first, least, most)


@_defines("Softmax", "axis")
def _softmax(c: Call) -> Result:
    return _over_axis(torch.softmax, c)


@_defines("LogSoftmax", "axis")
def _log_softmax(c: Call) -> Result:
    return _over_axis(torch.log_softmax, c)


def _over_axis(function: Callable[..., Tensor], c: Call) -> Tensor:
    """Along one axis; before version 13 along that one and all behind it, as one."""
    x = c.first
    if c.version >= 13:
        return function(x, c.told.get("axis", -1))
    axis = c.told.get("axis", 1)
    return function(x.flatten(axis), axis).reshape(x.shape) if axis >= 0 else function(x, axis)


@_defines("Dropout", "ratio", "seed")
def _dropout(c: Call) -> Result:
    return c.first  # as when it is not trained


@_defines("Cast", "to", "saturate", "round_mode")
def _cast(c: Call) -> Result:
    if c.told.get("to") not in _DTYPES:
        raise UnsupportedError(f"a cast to type {c.told.get('to')}")
    return c.first.to(_DTYPES[c.told["to"]])


@_defines("Flatten", "axis")
def _flatten(c: Call) -> Result:
    tensor, axis = c.first, c.told.get("axis", 1)
    axis = axis + tensor.dim() if axis < 0 else axis
    return tensor.reshape(1, -1) if axis == 0 else tensor.flatten(axis).flatten(0, axis - 1)


@_defines("Reshape", "allowzero")
def _reshape(c: Call) -> Result:
    tensor = c.first
    sizes = [
        tensor.shape[i] if size == 0 and not c.told.get("allowzero") else size
        for i, size in enumerate(c.ints(1))
    ]
    return tensor.reshape(sizes)


@_defines("Transpose", "perm")
def _transpose(c: Call) -> Result:
    tensor = c.first
    return tensor.permute(c.told.get("perm") or list(range(tensor.dim()))[::-1])


@_defines("Squeeze", "axes")
def _squeeze(c: Call) -> Result:
    axes = c.axes
    return c.first.squeeze() if axes is None else c.first.squeeze(axes)


@_defines("Unsqueeze", "axes")
def _unsqueeze(c: Call) -> Result:
    tensor, axes = c.first, c.axes or ()
    dimensions = tensor.dim() + len(axes)
    for axis in sorted(axis % dimensions for axis in axes):
        tensor = tensor.unsqueeze(axis)
    return tensor


@_defines("Concat", "axis")
def _concat(c: Call) -> Result:
    return torch.cat([tensor for tensor in c.inputs if tensor is not None], c.told["axis"])


@_defines("Split", "axis", "split", "num_outputs")
def _split(c: Call) -> Result:
    tensor, axis = c.first, c.told.get("axis", 0)
    sizes = c.told.get("split") or (c.ints(1) if c.optional(1) is not None else None)
    if sizes is None:
        parts = c.told["outputs"]  # the number of them, which bcu.models.graph adds
        return torch.split(tensor, -(-tensor.shape[axis] // parts), axis)
    return torch.split(tensor, sizes, axis)


@_defines("Slice", "starts", "ends", "axes")
def _slice(c: Call) -> Result:
    tensor = c.first
    starts, ends = (c.told["starts"], c.told["ends"]) if c.version < 10 else (c.ints(1), c.ints(2))
    axes = c.told.get("axes") or (c.ints(3) if c.optional(3) is not None else list(range(len(starts))))
    steps = c.ints(4) if c.optional(4) is not None else [1] * len(starts)
    if any(step < 1 for step in steps):
        raise UnsupportedError("a slice that runs backwards")
    index = [slice(None)] * tensor.dim()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return tensor[tuple(index)]


@_defines("Gather", "axis")
def _gather(c: Call) -> Result:
    tensor, index, axis = c.first, c.need(1).long(), c.told.get("axis", 0)
    index = torch.where(index < 0, index + tensor.shape[axis], index)
    flat = tensor.index_select(axis, index.reshape(-1))
    axis %= tensor.dim()
    return flat.reshape(*tensor.shape[:axis], *index.shape, *tensor.shape[axis + 1 :])


@_defines("Shape", "start", "end")
def _shape(c: Call) -> Result:
    return torch.tensor(list(c.first.shape)[c.told.get("start", 0) : c.told.get("end")])


@_defines("ConstantOfShape", "value")
def _constant_of_shape(c: Call) -> Result:
    value: Tensor = c.told.get("value", torch.zeros(1))
    return value.to(c.first.device).expand(_bounded(c.ints(0))).clone()


@_defines("Expand")
def _expand(c: Call) -> Result:
    shape: list[int] = list(torch.broadcast_shapes(c.first.shape, tuple(c.ints(1))))  # type: ignore[no-untyped-call]
    return c.first.expand(_bounded(shape))


def _reduced(function: Callable[..., Tensor], c: Call) -> Tensor:
    axes = c.axes
    if not axes and c.told.get("noop_with_empty_axes"):
        return c.first
    return function(c.first, axes or tuple(range(c.first.dim())), bool(c.told.get("keepdims", 1)))


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
    return F.layer_norm(
        tensor, tensor.shape[c.told.get("axis", -1) :], c.need(1), c.optional(2), c.told.get("epsilon", 1e-5)
    )


def _bounded(sizes: list[int]) -> list[int]:
    if reduce(operator.mul, sizes, 1) > _MOST_VALUES:
        raise UnsupportedError(f"a tensor of shape {sizes[:8]}")
    return sizes
