"""A hash of the function that a network computes; equal hashes mean the same function of the same tensors.

One forward pass on the meta device (no memory, no arithmetic) is recorded operator by operator. Every tensor
gets a label. The label of a parameter is its name. The label of a result is the hash of its operator, the
operator's numbers and the labels of its arguments.

The label of the output identifies the function. It does not depend on the names of modules, or on the order
in which independent branches run. Networks that compute the same with different operators get different
hashes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.models.architectures.dispatch import DispatchMode
from bcu_cli.models.architectures.index import digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COMMUTATIVE = {"aten::add.Tensor", "aten::mul.Tensor"}
_SAME_TENSOR = {"aten::detach", "aten::alias", "aten::contiguous", "aten::clone", "aten::lift_fresh"}
_RESHAPING = {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::unsqueeze", "aten::squeeze"}
#: Arguments that have no effect in evaluation mode.
_IGNORED_ARGUMENTS = {"momentum", "memory_format", "device", "layout", "pin_memory"}


class UntraceableError(Exception):
    """The network's function cannot be recorded in one pass on the meta device."""


def function_hash(
    network: nn.Module, input_size: tuple[int, int, int], names: Mapping[str, str] | None = None
) -> str:
    """The hash of what ``network`` computes in evaluation mode on inputs of ``input_size`` (C, H, W).

    Parameters and persistent buffers count by name (they come from the file), other buffers by content.

    Args:
        network: The network, which is moved to the meta device.
        input_size: Channels, height and width of the input.
        names: Names by which the parameters and buffers count instead of their own.

    Raises:
        UntraceableError: The pass fails on the meta device, or uses tensors whose content is not known there.
    """
    constants = {name: _content(buffer) for name, buffer in _constants(network)}
    network = network.to("meta").eval()
    names = names or {}
    labels = {
        id(t): f"tensor {names.get(name, name)}" for name, t in network.state_dict(keep_vars=True).items()
    }
    for name, buffer in _constants(network):
        labels[id(buffer)] = f"constant {constants[name]}"
    images = torch.empty(2, *input_size, device="meta")
    labels[id(images)] = "images"
    recorder = _Recorder(labels)
    try:
        with torch.no_grad(), recorder:
            output = network(images)
    except UntraceableError:
        raise
    except Exception as error:
        raise UntraceableError(str(error)) from error
    return digest(f"{input_size} {recorder.label(output)}")


def _constants(network: nn.Module) -> list[tuple[str, Tensor]]:
    saved = network.state_dict()
    return [(name, buffer) for name, buffer in network.named_buffers() if name not in saved]


def _content(buffer: Tensor) -> str:
    if buffer.device.type == "meta":
        return "unknown"
    return digest(str((tuple(buffer.shape), str(buffer.dtype), buffer.flatten().tolist())))


class _Recorder(DispatchMode):
    """Labels every tensor that an operator returns (see the module's docstring)."""

    def __init__(self, labels: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.labels = labels
        self.views: dict[int, Tensor] = {}  # a view's id -> the tensor it is a view of
        self.alive: list[Any] = []  # ids are unique only while their tensors exist

    def label(self, value: Any) -> str:
        """The label of a tensor or of a list with tensors; the text of any other value."""
        if isinstance(value, Tensor):
            label = self.labels.get(id(value), "")
            if not label or label == "constant unknown":
                raise UntraceableError("uses a tensor of unknown content")
            return label
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(self.label(item) for item in value) + "]"
        return str(value)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = func._schema
        arguments = {a.name: value for a, value in zip(schema.arguments, args, strict=False)} | kwargs
        operator = schema.name.removesuffix("_") + (
            "." + schema.overload_name if schema.overload_name else ""
        )
        label = self._result_label(operator, arguments, result)
        self.alive.append((result, args, kwargs))
        if schema.is_mutable:
            self._relabel_mutated(schema, arguments, label)
        elif isinstance(result, Tensor):
            self.labels[id(result)] = label
            if any(a.alias_info is not None for a in schema.arguments):
                self.views[id(result)] = next(v for v in arguments.values() if isinstance(v, Tensor))
        elif isinstance(result, (list, tuple)):
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    self.labels[id(item)] = digest(f"{label} {i}")
        return result

    def _result_label(self, operator: str, arguments: dict[str, Any], result: Any) -> str:
        base, _, overload = operator.partition(".")
        if base in _SAME_TENSOR:
            return self.label(arguments["self"])
        if base in _RESHAPING and isinstance(result, Tensor):
            return _reshaped(self.label(arguments["self"]), result)
        if base == "aten::mean" and overload == "dim":
            # A flattened mean is the same with and without keepdim.
            dims = sorted(dim % arguments["self"].dim() for dim in arguments["dim"])
            return _reshaped(digest(f"mean {dims} {self.label(arguments['self'])}"), result)
        texts = [
            f"{name}={self.label(value)}"
            for name, value in arguments.items()
            if name not in _IGNORED_ARGUMENTS
        ]
        if operator in _COMMUTATIVE and not {"alpha"} & arguments.keys():
            texts = sorted(self.label(value) for value in arguments.values())
        return digest(f"{operator}({'; '.join(texts)})")

    def _relabel_mutated(self, schema: Any, arguments: dict[str, Any], label: str) -> None:
        for argument in schema.arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            tensor = arguments.get(argument.name)
            if not isinstance(tensor, Tensor):
                raise UntraceableError("changes a list of tensors in place")
            view_label = self.labels.get(id(tensor), "")
            self.labels[id(tensor)] = label
            base = self.views.get(id(tensor))
            while base is not None:
                self.labels[id(base)] = digest(f"{self.label(base)} changed through {view_label} to {label}")
                base = self.views.get(id(base))


def _reshaped(label: str, result: Tensor) -> str:
    """The label of a reshaped tensor: only the last of several shapes counts."""
    return f"{label.partition(' as ')[0]} as {tuple(result.shape)}"
