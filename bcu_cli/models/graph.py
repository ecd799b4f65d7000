"""A network that runs an ONNX graph: bcu's own code computes each operator, nothing of the file is run.

Neither of the two converters to torch of 2026 would do: onnx2torch (last released in 2024) refuses what
torch's exporter writes today, onnx2pytorch any batch normalisation of the operator set's version 14 or newer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError
from bcu_cli.models.foreign import ForeignNetwork
from bcu_cli.models.graph_layers import layer_of
from bcu_cli.models.graph_operators import OPERATORS, Call, UnsupportedError
from bcu_cli.models.registry import one_line

if TYPE_CHECKING:
    from bcu_cli.checkpoints import Graph, Node
    from bcu_cli.models.graph_operators import Inputs

_TO_SIZES = ("Reshape", "Expand")
_OLDEST = 7
"""Before this version of the operator set, operators broadcast in a way of their own."""


class GraphNetwork(ForeignNetwork):
    """Runs a graph: images ``float [N, C, H, W]`` to its first output.

    Convolutions, linear layers and batch normalisations are torch's own modules, and other constants with
    fractions and more than one value are parameters, so that the network can be trained. Where a graph was
    exported for one size of batch, reshapes to that size are to the batch's.

    Args:
        graph: As read from the file.
        what: How errors call the file.

    Raises:
        ArchitectureError: It names an operator, or uses one in a way, that bcu does not compute.
    """

    def __init__(self, graph: Graph, what: str) -> None:
        super().__init__()
        if graph.version < _OLDEST:
            raise _refused(what, f"operators of version {graph.version}")
        self._input, self._output, self.version = graph.input, graph.output, graph.version
        self._batch = graph.input_shape[0] if graph.input_shape else None
        self._constants: dict[str, str] = {}
        self._steps: list[_Step] = []
        self.layers = nn.ModuleDict()
        known = {graph.input, *graph.tensors}
        try:
            for node in graph.nodes:
                self._add(node, graph.tensors, known)
            if graph.output not in known - set(graph.tensors):
                raise UnsupportedError("an output that nothing gives")
        except UnsupportedError as error:
            raise _refused(what, str(error)) from error
        except (LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise _refused(what, f"a node that lacks something ({one_line(error)})") from error
        self._last_use = {name: i for i, step in enumerate(self._steps) for name in step.inputs}

    def forward(self, images: Tensor) -> Tensor:
        """Images ``float [N, C, H, W]``, normalised, to whatever the graph gives first: logits ``[N, K]``."""
        values = {name: getattr(self, own) for name, own in self._constants.items()} | {self._input: images}
        for i, step in enumerate(self._steps):
            inputs = [values[name] if name else None for name in step.inputs]
            if step.operator in _TO_SIZES and self._batch not in {None, len(images)}:
                inputs[1] = self._of_this_batch(inputs, len(images))
            for name, value in zip(step.outputs, step.run(self, inputs), strict=False):
                values[name] = value
            for name in step.inputs:
                if self._last_use[name] == i and name != self._output:
                    values.pop(name, None)
        output: Tensor = values[self._output]
        return output

    def _add(self, node: Node, tensors: dict[str, Tensor], known: set[str]) -> None:
        """Append what a node computes, with the constants that it needs."""
        name = node.operator.removeprefix("ai.onnx::")
        layer = layer_of(node, tensors)
        inputs = node.inputs if layer is None else node.inputs[:1]
        if odd := [value for value in inputs if value and value not in known]:
            raise UnsupportedError(f"the value {odd[0][:60]!r}, which nothing gives")
        attributes: dict[str, Any] = {}
        key = ""
        if layer is not None:
            key = f"{len(self._steps):03}_{name}"
            self.layers[key] = layer
        elif name in OPERATORS:
            attributes = node.attributes | ({"outputs": len(node.outputs)} if name == "Split" else {})
            odd = sorted(set(node.attributes) - OPERATORS[name].attributes)
            odd += [one for one, value in node.attributes.items() if value is None]
            if odd:
                raise UnsupportedError(f"{name} with {odd[0][:60]}")
        else:
            raise UnsupportedError(f"the operator {node.operator[:60]}")
        for value in inputs:
            if value in tensors:
                self._keep(value, tensors[value])
        outputs = node.outputs if name == "Split" else node.outputs[:1]
        known.update(outputs)
        self._steps.append(_Step(name, key, tuple(inputs), outputs, attributes))

    def _keep(self, name: str, tensor: Tensor) -> None:
        """Keep a constant: to be trained if it may be a weight."""
        if name in self._constants:
            return
        own = f"constant_{len(self._constants):03}"
        self._constants[name] = own
        if tensor.is_floating_point() and tensor.numel() > 1:
            self.register_parameter(own, nn.Parameter(tensor.float().clone()))
        else:
            self.register_buffer(own, tensor.float() if tensor.is_floating_point() else tensor)

    def _of_this_batch(self, inputs: Inputs, size: int) -> Tensor | None:
        """The sizes to reshape or expand to, for as many images as there are now."""
        tensor, sizes = inputs[0], inputs[1]
        if sizes is None or tensor is None or not len(sizes) or int(sizes[0]) != self._batch:
            return sizes
        return torch.cat([sizes.new_tensor([size]), sizes[1:]]) if len(tensor) in {1, size} else sizes


@dataclass(frozen=True)
class _Step:
    """One node, ready to run.

    Args:
        operator: Its name in ONNX's own domain.
        layer: The key of its module; empty where it has none.
        inputs: Names of values.
        outputs: Likewise.
        attributes: What it is told.
    """

    operator: str
    layer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def run(self, network: GraphNetwork, inputs: Inputs) -> tuple[Tensor, ...]:
        """Compute it."""
        if self.layer:
            return (network.layers[self.layer](inputs[0]),)
        result = OPERATORS[self.operator].compute(Call(inputs, self.attributes, network.version))
        return (result,) if isinstance(result, Tensor) else result


def _refused(what: str, why: str) -> ArchitectureError:
    return ArchitectureError(
        f"the graph of {what} cannot be run: bcu does not compute {why}",
        "give the weights in a format of torch, or name the architecture with --arch if they keep its names",
    )
