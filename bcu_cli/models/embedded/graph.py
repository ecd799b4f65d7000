"""A network that evaluates an ONNX graph with bcu's operators; nothing in the file is run.

No converter to torch is used (as of 2026): onnx2torch, last released in 2024, refuses files of torch's
current exporter. onnx2pytorch refuses batch normalisation of version 14 of the operator set or newer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError
from bcu_cli.models.embedded.embedded_network import EmbeddedNetwork
from bcu_cli.models.embedded.graph_batch import Batch, BatchAxis, Use, batch_axis_of
from bcu_cli.models.embedded.graph_layers import layer_of, refuse_excess
from bcu_cli.models.embedded.graph_operators import MOST_DIMENSIONS, OPERATORS, Call, Limits, UnsupportedError
from bcu_cli.models.registry import one_line

if TYPE_CHECKING:
    from bcu_cli.checkpoints import Graph, Node
    from bcu_cli.models.embedded.graph_operators import Inputs

_FAULTS = (LookupError, ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError)
"""Exceptions of torch and Python for operators with invalid arguments."""
_VALUES_PER_VALUE, _WORK_PER_VALUE, _MOST_KEPT = 128, 2**18, 4
_MOST_USES, _SPARE_VALUES = 8, 2**20
"""Limit of the copies of constants: uses per constant on average, and values in addition."""
_OLDEST = 7
"""Oldest supported version of the operator set; before it, operators broadcast differently."""


class GraphNetwork(EmbeddedNetwork):
    """Evaluates a graph: maps images ``float [N, C, H, W]`` to its output, or to a tuple of its outputs.

    Convolutions, linear layers and batch normalisations are torch's modules. Other floating-point constants
    with more than one value are parameters. So the network can be trained. Sizes, axes and single numbers
    stay on the CPU, where sizes are computed, so that a GPU is not waited for. A graph that was exported for
    one size of batch is adapted to any (:mod:`~bcu_cli.models.embedded.graph_batch`).

    Args:
        graph: The graph of the file.
        what: Name of the file in errors.
        most_steps: Largest number of operations.
        most_values: Largest number of values in a result for a small batch; for a large one, 128 times as
            many as the batch has. Four times as many may be held at once.
        most_work: Largest number of multiplications of one operation for a small batch; for a large one,
            2**18 for each value in the batch.

    Raises:
        ArchitectureError: An operator, or the way it is used, is not supported.
    """

    def __init__(
        self,
        graph: Graph,
        what: str,
        *,
        most_steps: int = 20_000,
        most_values: int = 2**25,
        most_work: int = 2**34,
    ) -> None:
        super().__init__()
        self._what, self._small = what, Limits(most_values, most_work)
        if len(graph.nodes) > most_steps:
            raise _refused(what, f"{len(graph.nodes):,} operations")
        held = sum(tensor.numel() for tensor in {id(one): one for one in graph.tensors.values()}.values())
        self._copies_left = _MOST_USES * held + _SPARE_VALUES
        if graph.version < _OLDEST:
            raise _refused(what, f"operators of version {graph.version}")
        self._input, self.version = graph.input, graph.version
        self.exported_batch = graph.input_shape[0] if graph.input_shape else None
        self._constants: dict[str, str] = {}
        self._numbers: dict[str, Tensor] = {}
        self._steps: list[_Step] = []
        self.layers = nn.ModuleDict()
        known = {graph.input, *graph.tensors}
        try:
            for node in graph.nodes:
                self._add(node, graph.tensors, known)
            self._outputs = tuple(name for name in graph.outputs if name in known - set(graph.tensors))
            if not self._outputs:
                raise UnsupportedError("an output that nothing gives")
        except UnsupportedError as error:
            raise _refused(what, str(error)) from error
        except _FAULTS as error:
            raise _refused(what, f"a node that lacks something ({one_line(error)})") from error
        self._computed = {graph.input}
        """Names of values that depend on the input; sizes among them are those of the current batch."""
        for step in self._steps:
            if self._computed.intersection(step.inputs):
                self._computed.update(step.outputs)
        self._last_use = {name: i for i, step in enumerate(self._steps) for name in step.inputs}

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map normalised images ``float [N, C, H, W]`` to the graph's output, or to its outputs in order."""
        values = {name: getattr(self, own) for name, own in self._constants.items()} | self._numbers
        values[self._input] = images
        limits = Limits(
            max(self._small.values, _VALUES_PER_VALUE * images.numel()),
            max(self._small.work, _WORK_PER_VALUE * images.numel()),
        )
        batch = Batch(len(images) if images.dim() else 1, self.exported_batch)
        batch_axes: dict[str, BatchAxis | None] = {self._input: BatchAxis(0) if images.dim() else None}
        kept = 0
        for i, step in enumerate(self._steps):
            results, places = self._run(step, values, batch_axes, batch, limits)
            for name, value, place in zip(step.outputs, results, places, strict=False):
                values[name], batch_axes[name] = value, place
                kept += value.numel()
            if kept > _MOST_KEPT * limits.values:
                raise self._failed(step, f"{kept:,} values are kept at once")
            for name in step.inputs:
                if self._last_use[name] == i and name not in self._outputs and name in values:
                    given = name in self._constants or name in self._numbers or name == self._input
                    kept -= 0 if given else values[name].numel()
                    del values[name]
        outputs = tuple(values[name] for name in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(
        self,
        step: _Step,
        values: dict[str, Tensor],
        batch_axes: dict[str, BatchAxis | None],
        batch: Batch,
        limits: Limits,
    ) -> tuple[tuple[Tensor, ...], list[BatchAxis | None]]:
        """Compute one operation: its results, and the batch axis of each."""
        inputs = [values[name] if name else None for name in step.inputs]
        held = [batch_axes.get(name) for name in step.inputs]
        fixed = not self._computed.intersection(step.inputs[1:])
        try:
            inputs, place = batch.adapt(Use(step.operator, step.attributes, inputs, held, fixed))
            results = step.run(self, inputs, limits)
            use = Use(step.operator, step.attributes, inputs, held)
            return results, [place or batch_axis_of(use, result) for result in results]
        except torch.OutOfMemoryError:
            raise
        except UnsupportedError as error:
            raise self._failed(step, str(error)) from error
        except _FAULTS as error:
            if "allocate memory" in str(error):
                raise
            raise self._failed(step, one_line(error)) from error

    def _failed(self, step: _Step, why: str) -> ArchitectureError:
        return ArchitectureError(
            f"the graph of {self._what} fails at {step.operator}: {why}",
            "the graph is broken, or made for images of another --input-size",
        )

    def _add(self, node: Node, tensors: dict[str, Tensor], known: set[str]) -> None:
        """Append the step of a node, with the constants that it needs."""
        name = node.operator.removeprefix("ai.onnx::")
        layer = layer_of(node, tensors)
        inputs = node.inputs if layer is None else node.inputs[:1]
        if unsupported := [value for value in inputs if value and value not in known]:
            raise UnsupportedError(f"the value {unsupported[0][:60]!r}, which no node computes")
        attributes: dict[str, Any] = {}
        key = ""
        if layer is not None:
            self._count_copy(sum(parameter.numel() for parameter in layer.parameters()))
            key = f"{len(self._steps):03}_{name}"
            self.layers[key] = layer
        elif name in OPERATORS:
            attributes = node.attributes | ({"outputs": len(node.outputs)} if name == "Split" else {})
            unsupported = sorted(set(node.attributes) - OPERATORS[name].attributes)
            unsupported += [one for one, value in node.attributes.items() if value is None]
            if unsupported:
                raise UnsupportedError(f"{name} with {unsupported[0][:60]}")
        else:
            raise UnsupportedError(f"the operator {node.operator[:60]}")
        for value in inputs:
            if value in tensors:
                self._keep(value, tensors[value])
        outputs = node.outputs if name == "Split" else node.outputs[:1]
        known.update(outputs)
        self._steps.append(_Step(name, key, tuple(inputs), outputs, attributes))

    def _keep(self, name: str, tensor: Tensor) -> None:
        """Store a constant, as a parameter if it may be a weight."""
        if name in self._constants or name in self._numbers:
            return
        self._count_copy(tensor.numel())
        if tensor.numel() <= (1 if tensor.is_floating_point() else MOST_DIMENSIONS):
            self._numbers[name] = tensor.float() if tensor.is_floating_point() else tensor
            return
        own = f"constant_{len(self._constants):03}"
        self._constants[name] = own
        if tensor.is_floating_point():
            self.register_parameter(own, nn.Parameter(tensor.float().clone()))
        else:
            self.register_buffer(own, tensor)

    def _count_copy(self, values: int) -> None:
        """Count the copies of constants, since a small file could ask for very many."""
        self._copies_left -= values
        if self._copies_left < 0:
            raise UnsupportedError("constants that are used over and over")


@dataclass(frozen=True)
class _Step:
    """One node, ready to run.

    Args:
        operator: Name of the operator in ONNX's default domain.
        layer: Key of the operator's module; empty where it has none.
        inputs: Names of the input values.
        outputs: Names of the output values.
        attributes: Attributes of the node, by name.
    """

    operator: str
    layer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def run(self, network: GraphNetwork, inputs: Inputs, limits: Limits) -> tuple[Tensor, ...]:
        """Compute the operation within limits."""
        if self.layer:
            layer, value = network.layers[self.layer], inputs[0]
            if value is None:
                raise UnsupportedError("an operator without its input")
            refuse_excess(layer, value.shape, limits)
            return (layer(value),)
        result = OPERATORS[self.operator].compute(Call(inputs, self.attributes, network.version, limits))
        return (result,) if isinstance(result, Tensor) else result


def _refused(what: str, why: str) -> ArchitectureError:
    return ArchitectureError(
        f"the graph of {what} cannot be run: bcu does not compute {why}",
        "give the weights in a format of torch, or name the architecture with --arch if they keep its names",
    )
