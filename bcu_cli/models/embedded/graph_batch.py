"""Tracks the batch axis through the values of an ONNX graph, from its input.

A graph is often exported for one size of batch, which then is a constant in its reshapes. The size alone does
not show whether it counts images or channels. So the batch axis is tracked from operation to operation, and
only sizes of that axis are adapted to another batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bcu_cli.models.embedded.graph_operators import Inputs


@dataclass(frozen=True)
class BatchAxis:
    """The dimension of a value that holds the images.

    Its size is ``outer * images * inner``, since reshapes may merge it with other dimensions.

    Args:
        axis: Index of the dimension.
        outer: Product of the sizes of merged dimensions in front of the images.
        inner: Product of the sizes of merged dimensions behind the images.
    """

    axis: int
    outer: int = 1
    inner: int = 1

    def at(self, axis: int) -> BatchAxis:
        """A batch axis of equal size at another dimension."""
        return BatchAxis(axis, self.outer, self.inner)


@dataclass(frozen=True)
class Use:
    """One use of an operator.

    Args:
        operator: Name of the operator in ONNX's default domain.
        attributes: Attributes of the node, by name.
        inputs: The input values.
        batch_axes: The batch axis of each input; None for an input without images.
        fixed: Whether its sizes are constants of the graph, and so those of the exported batch.
    """

    operator: str
    attributes: dict[str, Any]
    inputs: Inputs
    batch_axes: list[BatchAxis | None]
    fixed: bool = True

    @property
    def batched(self) -> tuple[Tensor, BatchAxis] | None:
        """The first input with its batch axis; None where it has none."""
        if not self.inputs or self.inputs[0] is None or self.batch_axes[0] is None:
            return None
        return self.inputs[0], self.batch_axes[0]

    @property
    def sizes(self) -> Tensor | None:
        """The second input, if it is a list of sizes or axes."""
        value = self.inputs[1] if len(self.inputs) > 1 else None
        return value if value is not None and value.dim() == 1 else None

    def axis(self, default: int, dimensions: int) -> int:
        """The attribute ``axis``, converted to a non-negative index."""
        axis = self.attributes.get("axis", default)
        return int(axis) + dimensions if axis < 0 else int(axis)

    def axes(self) -> list[int] | None:
        """The axes, from the attribute or the second input; None where there are none."""
        axes = self.attributes.get("axes")
        if axes is not None:
            return [int(axis) for axis in axes]
        return None if self.sizes is None else [int(axis) for axis in self.sizes.tolist()]


@dataclass(frozen=True)
class Batch:
    """The batch of one pass.

    Args:
        images: Number of images.
        exported: Size of batch that the graph was exported for; None where it is not fixed.
    """

    images: int
    exported: int | None

    def adapt(self, use: Use) -> tuple[Inputs, BatchAxis | None]:
        """Adapt the inputs of an operation to this batch; for a reshape, also give the new batch axis."""
        if use.operator == "Reshape":
            return self._reshaped(use)
        adapter = {"Expand": _expanded, "Squeeze": self._squeezed, "Concat": self._joined}.get(use.operator)
        return (adapter(use) if adapter else use.inputs), None

    def _reshaped(self, use: Use) -> tuple[Inputs, BatchAxis | None]:
        """Replace the size of the batch axis by -1, so that the sizes hold for any batch."""
        if use.batched is None or use.sizes is None or not use.batched[0].numel():
            return use.inputs, None
        tensor, batch_axis = use.batched
        wanted = [int(size) for size in use.sizes.tolist()]
        for images in (self.exported, self.images) if use.fixed else (self.images, self.exported):
            if images is None:
                continue
            shape = _shape(tensor, batch_axis, images)
            sizes = _resolved(shape, wanted, keeps_zero=bool(use.attributes.get("allowzero")))
            place = _placed(shape, batch_axis, sizes, images) if sizes else None
            if sizes and place:
                sizes[place.axis] = -1
                return [tensor, use.sizes.new_tensor(sizes)], place
        return use.inputs, None

    def _squeezed(self, use: Use) -> Inputs:
        """Keep the batch axis of a single image where all dimensions of size 1 are removed."""
        if use.batched is None or use.axes() is not None or self.exported == 1:
            return use.inputs
        tensor, batch_axis = use.batched
        axes = [axis for axis, size in enumerate(tensor.shape) if size == 1 and axis != batch_axis.axis]
        return [tensor, torch.tensor(axes, dtype=torch.int64)]

    def _joined(self, use: Use) -> Inputs:
        """Repeat for this batch what the graph repeats for each image of the exported batch."""
        pairs = [
            (tensor, batch_axis)
            for tensor, batch_axis in zip(use.inputs, use.batch_axes, strict=True)
            if tensor is not None and batch_axis is not None
        ]
        if not pairs or self.exported is None:
            return use.inputs
        like, batch_axis = pairs[0]
        if batch_axis.outer * batch_axis.inner != 1 or use.axis(0, like.dim()) == batch_axis.axis:
            return use.inputs
        return [
            self._repeated(tensor, batch_axis.axis, like) if own is None and tensor is not None else tensor
            for tensor, own in zip(use.inputs, use.batch_axes, strict=True)
        ]

    def _repeated(self, tensor: Tensor, axis: int, like: Tensor) -> Tensor:
        if tensor.dim() != like.dim() or tensor.shape[axis] != self.exported:
            return tensor
        first = tensor.narrow(axis, 0, 1)
        if self.exported > 1 and not bool((tensor == first).all()):
            return tensor
        return first.expand([like.shape[axis] if i == axis else -1 for i in range(tensor.dim())])


def batch_axis_of(use: Use, output: Tensor) -> BatchAxis | None:
    """The batch axis of the result of an operation; None where it cannot be tracked."""
    rule = _RULES.get(use.operator)
    if rule is None or not any(use.batch_axes):
        return None
    found = rule(use, output)
    return found if found is not None and 0 <= found.axis < output.dim() else None


def _expanded(use: Use) -> Inputs:
    """Keep the size of the batch axis."""
    if use.batched is None or use.sizes is None:
        return use.inputs
    tensor, batch_axis = use.batched
    place = len(use.sizes) - tensor.dim() + batch_axis.axis
    if place < 0:
        return use.inputs
    return [tensor, torch.cat([use.sizes[:place], use.sizes.new_tensor([-1]), use.sizes[place + 1 :]])]


def _shape(tensor: Tensor, batch_axis: BatchAxis, images: int) -> list[int]:
    """The shape that a tensor has with a number of images."""
    shape = [int(size) for size in tensor.shape]
    shape[batch_axis.axis] = batch_axis.outer * images * batch_axis.inner
    return shape


def _resolved(shape: list[int], wanted: list[int], *, keeps_zero: bool) -> list[int] | None:
    """The sizes of a reshape without 0 and -1; None where they do not fit a tensor of that shape."""
    if any(size == 0 and i >= len(shape) for i, size in enumerate(wanted)):
        return None
    sizes = [shape[i] if size == 0 and not keeps_zero else size for i, size in enumerate(wanted)]
    if sizes.count(-1) == 1:
        known = math.prod(size for size in sizes if size != -1)
        if known <= 0 or math.prod(shape) % known:
            return None
        sizes[sizes.index(-1)] = math.prod(shape) // known
    return sizes if min(sizes, default=1) > 0 and math.prod(sizes) == math.prod(shape) else None


def _placed(shape: list[int], batch_axis: BatchAxis, sizes: Sequence[int], images: int) -> BatchAxis | None:
    """The batch axis after a reshape from ``shape`` to ``sizes``, both for the same number of images.

    A reshape keeps the order of all values, and so the number of values in front of and behind the images.
    More than one dimension may fit, since a batch of one has size 1. Then it is a dimension without merged
    outer dimensions, and not the last one, which holds features.
    """
    before = math.prod(shape[: batch_axis.axis]) * batch_axis.outer
    behind = batch_axis.inner * math.prod(shape[batch_axis.axis + 1 :])
    found, passed = [], 1
    for axis, size in enumerate(sizes):
        outer = before // passed
        inner = size // (outer * images) if outer else 0
        rest = math.prod(sizes[axis + 1 :])
        if inner and (passed * outer, outer * images * inner, inner * rest) == (before, size, behind):
            merges_features = rest == 1 and inner > 1
            found.append((merges_features, outer != 1, inner, axis, outer))
        passed *= size
    if not found:
        return None
    _, _, inner, axis, outer = min(found)
    return BatchAxis(axis, outer, inner)


def _kept(use: Use, output: Tensor) -> BatchAxis | None:  # noqa: ARG001 - the shape of a rule
    return use.batch_axes[0]


def _broadcast(use: Use, output: Tensor) -> BatchAxis | None:
    """Dimensions are aligned from the last one, since inputs may have different numbers of them."""
    for tensor, batch_axis in zip(use.inputs, use.batch_axes, strict=True):
        if tensor is not None and batch_axis is not None:
            return batch_axis.at(output.dim() - tensor.dim() + batch_axis.axis)
    return None


def _multiplied(use: Use, output: Tensor) -> BatchAxis | None:
    """A product of matrices removes the summed dimension; the second factor's columns become the last one."""
    for place, (tensor, batch_axis) in enumerate(zip(use.inputs, use.batch_axes, strict=True)):
        if tensor is None or batch_axis is None:
            continue
        from_end = batch_axis.axis - tensor.dim()
        if from_end != (-1, -2)[place]:
            return batch_axis.at(output.dim() + from_end)
    return None


def _linear(use: Use, output: Tensor) -> BatchAxis | None:
    """A linear layer changes the last dimension."""
    batch_axis = use.batch_axes[0]
    return batch_axis if batch_axis is not None and batch_axis.axis < output.dim() - 1 else None


def _flattened(use: Use, output: Tensor) -> BatchAxis | None:  # noqa: ARG001
    if use.batched is None:
        return None
    tensor, batch_axis = use.batched
    cut = use.axis(1, tensor.dim())
    first, last = (0, cut) if batch_axis.axis < cut else (cut, tensor.dim())
    outer = batch_axis.outer * math.prod(tensor.shape[first : batch_axis.axis])
    inner = batch_axis.inner * math.prod(tensor.shape[batch_axis.axis + 1 : last])
    return BatchAxis(int(batch_axis.axis >= cut), int(outer), int(inner))


def _transposed(use: Use, output: Tensor) -> BatchAxis | None:
    batch_axis = use.batch_axes[0]
    order = use.attributes.get("perm") or list(range(output.dim()))[::-1]
    return (
        batch_axis.at(order.index(batch_axis.axis))
        if batch_axis is not None and batch_axis.axis in order
        else None
    )


def _without(use: Use, axes: Sequence[int]) -> BatchAxis | None:
    """The batch axis after dimensions are removed."""
    if use.batched is None:
        return None
    tensor, batch_axis = use.batched
    removed = {axis % tensor.dim() for axis in axes}
    return (
        None
        if batch_axis.axis in removed
        else batch_axis.at(batch_axis.axis - sum(axis < batch_axis.axis for axis in removed))
    )


def _squeeze(use: Use, output: Tensor) -> BatchAxis | None:  # noqa: ARG001
    axes = use.axes()
    if axes is None and use.batched is not None:
        axes = [axis for axis, size in enumerate(use.batched[0].shape) if size == 1]
    return _without(use, axes or [])


def _unsqueeze(use: Use, output: Tensor) -> BatchAxis | None:
    batch_axis, new = use.batch_axes[0], {axis % output.dim() for axis in use.axes() or []}
    old = [axis for axis in range(output.dim()) if axis not in new]
    return (
        batch_axis.at(old[batch_axis.axis]) if batch_axis is not None and batch_axis.axis < len(old) else None
    )


def _reduced(use: Use, output: Tensor) -> BatchAxis | None:  # noqa: ARG001
    if use.batched is None:
        return None
    tensor, batch_axis = use.batched
    axes = use.axes() or ([] if use.attributes.get("noop_with_empty_axes") else list(range(tensor.dim())))
    if use.attributes.get("keepdims", 1):
        return None if batch_axis.axis in {axis % tensor.dim() for axis in axes} else batch_axis
    return _without(use, axes)


def _along(use: Use, output: Tensor) -> BatchAxis | None:
    """Splitting and joining along an axis keeps the batch axis, unless it is that axis."""
    batch_axis = next((batch_axis for batch_axis in use.batch_axes if batch_axis is not None), None)
    return batch_axis if batch_axis is not None and use.axis(0, output.dim()) != batch_axis.axis else None


def _sliced(use: Use, output: Tensor) -> BatchAxis | None:
    if use.batched is None:
        return None
    tensor, batch_axis = use.batched
    return batch_axis if output.shape[batch_axis.axis] == tensor.shape[batch_axis.axis] else None


def _gathered(use: Use, output: Tensor) -> BatchAxis | None:
    if use.batched is None:
        return None
    tensor, batch_axis = use.batched
    axis = use.axis(0, tensor.dim())
    if axis == batch_axis.axis:
        return None
    return (
        batch_axis if batch_axis.axis < axis else batch_axis.at(batch_axis.axis + output.dim() - tensor.dim())
    )


_KEEPING = """
    Conv BatchNormalization MaxPool AveragePool GlobalAveragePool GlobalMaxPool Abs Neg Exp Log Sqrt
    Reciprocal Erf Relu Sigmoid Tanh Softplus Mish HardSwish Identity LeakyRelu HardSigmoid Gelu Clip Softmax
    LogSoftmax Dropout Cast LayerNormalization
"""
_BROADCASTING = "Add Sub Mul Div Pow PRelu Equal Max Min Where Expand"
_RULES: dict[str, Callable[[Use, Tensor], BatchAxis | None]] = {
    **dict.fromkeys(_KEEPING.split(), _kept),
    **dict.fromkeys(_BROADCASTING.split(), _broadcast),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), _reduced),
    **dict.fromkeys(("Concat", "Split"), _along),
    "MatMul": _multiplied,
    "Gemm": _linear,
    "Flatten": _flattened,
    "Transpose": _transposed,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _sliced,
    "Gather": _gathered,
}
"""The rule of each operator; the batch axis cannot be tracked through other operators."""
