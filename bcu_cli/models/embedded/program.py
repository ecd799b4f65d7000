"""A network that runs the graph of a ``torch.export`` archive, operator by operator; torch never loads it."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.checkpoints import Value
from bcu_cli.errors import ArchitectureError
from bcu_cli.limits import is_lack_of_memory
from bcu_cli.models.embedded.embedded_network import EmbeddedNetwork
from bcu_cli.models.embedded.script_limits import Limits, RefusedError, Run, Usage
from bcu_cli.models.embedded.script_operators import compute
from bcu_cli.models.registry import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.checkpoints import Operation, Program

_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_OF_SIZES: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg")
}
"""Arithmetic on sizes, which graphs with an open batch size contain."""
_CHECKS = frozenset(("aten::_assert_tensor_metadata", "aten::_assert_scalar"))
"""Operators that compute nothing."""
_AS_CALLED = {
    "aten::sym_size": "aten::size",
    "aten::lift_fresh_copy": "aten::clone",
    "aten::detach_": "aten::detach",
}
"""Operators of graphs, with the names that the evaluator of TorchScript gives them."""
_MOST_OPERATIONS, _MOST_SIZES = 20_000, 64


class ProgramNetwork(EmbeddedNetwork):
    """Runs an exported graph: maps images ``float [N, C, H, W]`` to its output, or to a tuple of its outputs.

    Convolutions, linear layers and batch normalisations are torch's own modules, so that the defenses know
    them; other weights are parameters, too.

    Args:
        program: The graph as it was read from the file.
        what: How errors call the file.

    Raises:
        ArchitectureError: It has too many operations.
    """

    def __init__(self, program: Program, what: str) -> None:
        super().__init__()
        self._what, self._program = what, program
        self._usages: dict[tuple[int, ...], Usage] = {}
        self._run: list[Run] = []
        if len(program.operations) > _MOST_OPERATIONS:
            raise self._failed(f"it has {len(program.operations):,} operations")
        tensors = {
            name: _held(tensor, is_parameter=name in program.parameters)
            for name, tensor in program.tensors.items()
        }
        self.layers = nn.ModuleDict()
        kept = set[str]()
        for number, operation in enumerate(program.operations):
            layer = _layer(operation, tensors, self._run)
            if layer is not None:
                self.layers[str(number)] = layer
            else:
                kept.update(each.name for each in _values((operation.args, operation.named)))
        self._own = {name: f"value_{number}" for number, name in enumerate(sorted(kept & tensors.keys()))}
        for name, own in self._own.items():
            tensor = tensors[name]
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(own, tensor)
            else:
                self.register_buffer(own, tensor)

    def forward(self, images: Tensor) -> Any:
        """Images ``float [N, C, H, W]``, normalised, to the graph's output, or to its outputs in order."""
        size = tuple(images.shape[1:])
        run = Run(Limits(), max(len(images), 1), images.device, self._usages.get(size))
        self._run[:] = [run]
        try:
            result = self._computed(run, images)
        except RefusedError as error:
            raise self._failed(str(error)) from error
        except _FAULTS as error:
            if is_lack_of_memory(error):
                raise
            raise self._failed(f"it fails: {one_line(error)}") from error
        finally:
            self._run.clear()
        if len(self._usages) < _MOST_SIZES:
            self._usages.setdefault(size, run.usage)
        return result

    def _computed(self, run: Run, images: Tensor) -> Any:
        values: dict[str, Any] = {name: getattr(self, own) for name, own in self._own.items()}
        values[self._program.input] = (
            images.clone()
        )  # operators that write in place must not reach the caller's
        last = {
            each.name: number
            for number, one in enumerate(self._program.operations)
            for each in _values((one.args, one.named))
        }
        for number, one in enumerate(self._program.operations):
            key = str(number)
            if key in self.layers:
                results: Any = self.layers[key](_filled(one.args[0], values))
            else:
                results = _call(run, one, list(_filled(one.args, values)), _filled(one.named, values))
            several = results if isinstance(results, list | tuple) else (results,)
            values.update(zip(one.outputs, several, strict=False))
            for each in _values((one.args, one.named)):
                if last[each.name] == number and each.name not in self._program.outputs:
                    values.pop(each.name, None)
        outputs = tuple(_filled(Value(name), values) for name in self._program.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _failed(self, why: str) -> ArchitectureError:
        return ArchitectureError(
            f"the exported graph of {self._what} cannot be run: {why}",
            "if bcu knows the architecture, name it with --arch: then the graph is not run",
        )


class _Convolution(nn.Conv2d):
    """A convolution of a graph; its result is counted before it is computed."""

    run: list[Run]

    def forward(self, images: Tensor) -> Tensor:
        if not self.run or torch._C._get_tracing_state() is not None:
            return super().forward(images)
        settings = (list(self.stride), self.padding, list(self.dilation), self.groups)
        padding = self.padding if isinstance(self.padding, str) else list(self.padding)
        args = [images, self.weight, self.bias, settings[0], padding, settings[2], settings[3]]
        result: Tensor = compute(self.run[0], "aten::conv2d", args, {})
        return result


class _BatchNorm(nn.BatchNorm2d):
    """A batch normalisation of a graph, which holds no kind: features ``[N, C]`` are normalised, too."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        """Accept any number of dimensions; the operator refuses what has no channels."""


def _held(tensor: Tensor, *, is_parameter: bool) -> Tensor:
    """A weight in float32, whatever its stored type; integers stay as they are."""
    if not tensor.is_floating_point():
        return tensor
    return nn.Parameter(tensor.float()) if is_parameter else tensor.float()


def _values(arguments: Any) -> list[Value]:
    """All values that stand among arguments."""
    found, pending = [], [arguments]
    while pending:
        one = pending.pop()
        if isinstance(one, Value):
            found.append(one)
        elif isinstance(one, list | tuple):
            pending += one
        elif isinstance(one, dict):
            pending += one.values()
    return found


def _filled(argument: Any, values: dict[str, Any]) -> Any:
    """An argument in which computed values replace their names."""
    if isinstance(argument, Value):
        if argument.name not in values:
            raise RefusedError(f"it uses {argument.name[:60]}, which nothing gives")
        return values[argument.name]
    if isinstance(argument, list | tuple):
        return [_filled(each, values) for each in argument]
    return (
        {key: _filled(each, values) for key, each in argument.items()}
        if isinstance(argument, dict)
        else argument
    )


def _call(run: Run, one: Operation, args: list[Any], named: dict[str, Any]) -> Any:
    if one.operator in _CHECKS:
        return None
    named = {
        key: getattr(torch, value) if key == "dtype" and value else value for key, value in named.items()
    }
    if one.operator in _OF_SIZES:
        run.spend()
        if not all(isinstance(arg, int) and not isinstance(arg, bool) and abs(arg) < 2**31 for arg in args):
            raise RefusedError(f"it calls {one.operator} with what are no sizes")
        return _OF_SIZES[one.operator](*args)
    return compute(run, _AS_CALLED.get(one.operator, one.operator), args, named)


def _layer(operation: Operation, tensors: dict[str, Tensor], run: list[Run]) -> nn.Module | None:
    """The module of torch for an operation with weights; None for any other operation."""
    make = _LAYERS.get(operation.operator)
    args = [*operation.args, *(None,) * 9]
    if make is None or operation.named or not isinstance(args[0], Value):
        return None
    weights = [tensors.get(each.name) if isinstance(each, Value) else each for each in args[1:5]]
    layer = make(args, weights)
    if isinstance(layer, _Convolution):
        layer.run = run
    return layer


def _are_weights(weight: Any, bias: Any, dimensions: int) -> bool:
    """Whether these are the weights of a layer, with or without a bias."""
    return (
        isinstance(weight, nn.Parameter)
        and weight.dim() == dimensions
        and (bias is None or isinstance(bias, nn.Parameter))
    )


def _convolution(args: list[Any], weights: list[Any]) -> nn.Module | None:
    weight, bias = weights[:2]
    if not _are_weights(weight, bias, 4):
        return None
    stride, padding, dilation = (_two(args[place], default) for place, default in ((3, 1), (4, 0), (5, 1)))
    groups = args[6] or 1
    if None in (stride, padding, dilation) or not 1 <= groups <= len(weight) or len(weight) % groups:
        return None
    layer = _Convolution(
        weight.shape[1] * groups,
        len(weight),
        (weight.shape[2], weight.shape[3]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    layer.weight = weight
    layer.register_parameter("bias", bias)
    return layer


def _linear(args: list[Any], weights: list[Any]) -> nn.Module | None:  # noqa: ARG001 - the shape of a maker
    weight, bias = weights[:2]
    if not _are_weights(weight, bias, 2):
        return None
    layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device="meta")
    layer.weight = weight
    layer.register_parameter("bias", bias)
    return layer


def _batch_norm(args: list[Any], weights: list[Any]) -> nn.Module | None:
    """A normalisation in evaluation mode; one that takes the statistics of the batch stays an operation.

    It is torch's layer, so that in training mode it normalises by the batch.
    """
    affine, statistics = weights[:2], weights[2:]
    has_weights = any(each is not None for each in affine)
    held = weights if has_weights else statistics
    if args[5] is not False or not all(isinstance(each, Tensor) and each.dim() == 1 for each in held):
        return None
    if has_weights and not all(isinstance(each, nn.Parameter) for each in affine):
        return None
    if len({len(each) for each in held}) != 1:
        return None
    layer = _BatchNorm(
        len(statistics[0]),
        eps=args[7],
        momentum=args[6] or None,  # exported as 0 where the layer averages over all batches
        affine=has_weights,
        device="meta",
    )
    layer.register_parameter("weight", affine[0])
    layer.register_parameter("bias", affine[1])
    layer.running_mean, layer.running_var = statistics
    layer.num_batches_tracked = torch.tensor(0)
    return layer


def _two(value: Any, default: int) -> Any:
    """Two numbers for the sides of a window, or ``same`` and ``valid``; None where it is neither."""
    if value is None:
        return (default, default)
    if isinstance(value, str):
        return value if value in {"same", "valid"} else None
    return (
        tuple(value) if len(value) == 2 and all(type(each) is int and each >= 0 for each in value) else None
    )


_LAYERS: dict[str, Callable[[list[Any], list[Any]], nn.Module | None]] = {
    "aten::conv2d": _convolution,
    "aten::linear": _linear,
    "aten::batch_norm": _batch_norm,
}
