"""ONNX models: weights, operators and graph, read without any ONNX library.

The format is defined by the ONNX project's ``onnx.proto`` and its "Open Neural Network Exchange Intermediate
Representation".
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bcu_cli.checkpoints.archive import damaged
from bcu_cli.checkpoints.checkpoint import Finding
from bcu_cli.checkpoints.onnx.onnx_tensors import check_tensor, read_tensor, unfit, unpack_numbers
from bcu_cli.checkpoints.onnx.protobuf import BrokenMessageError, Decoder, Message, TooManyFieldsError
from bcu_cli.checkpoints.onnx.schema import SCHEMA
from bcu_cli.errors import CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from bcu_cli.checkpoints.checkpoint import Checkpoint

OPERATOR_RULE = "onnx-operator"
_HALF = 10  # ONNX's type code of float16
_MOST_BYTES = 2**31  # the protobuf format's limit for a message
_STANDARD = ("ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "ai.onnx.preview")
_OF_RUNTIMES = ("com.microsoft", "com.microsoft.nchwc")
"""Domains of operators that are built into ONNX Runtime, whose optimiser writes them."""
_DANGEROUS = ("com.microsoft::EPContext", "com.microsoft::PythonOp", "com.microsoft::PythonOpGrad")
"""Operators that run Python, or load compiled code from the file or from a path in it."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a graph.

    Attributes:
        operator: Full name of the operator, such as ``ai.onnx::Conv``.
        inputs: Names of the input values; an omitted input is an empty text.
        outputs: Names of the output values; an omitted output is an empty text.
        attributes: Numbers, texts, tensors and lists of numbers; None for a type that bcu does not know.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The graph of a file.

    Attributes:
        input: Name of its only input.
        input_shape: Shape of the input, with None for a size that is not fixed; empty if it is not given.
        outputs: Names of its outputs.
        nodes: The nodes, each after those that it depends on.
        tensors: The constants, by name.
        version: Version of ONNX's standard operator set.
        takes_half: Whether its input has half precision.
    """

    input: str
    input_shape: tuple[int | None, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    tensors: dict[str, torch.Tensor]
    version: int
    takes_half: bool = False


@dataclass(frozen=True)
class Inspection:
    """The result of inspecting a whole file.

    Attributes:
        findings: Facts that its user should know.
        operators: All operators that its graphs, nested graphs and functions name, sorted.
        files: Files beside it that hold tensors, sorted.
        metadata: The texts of ``metadata_props``, by key.
    """

    findings: list[Finding]
    operators: tuple[str, ...]
    files: tuple[Path, ...]
    metadata: dict[str, str]


def inspect_model(path: Path) -> Inspection:
    """Inspect every graph and tensor of a file without reading the tensors.

    Raises:
        CheckpointError: The file is damaged, violates the format or lacks its external data, and holds
            nothing unsafe. If it does, the findings are returned instead.
    """
    model = _decode(path)
    findings: dict[str, Finding] = {}
    files: Counter[Path] = Counter()
    error: CheckpointError | None = None
    for tensor in _tensors(model):
        try:
            if external := check_tensor(path, tensor):
                files[external.file] += external.length
        except UnsafeFileError as unsafe:
            findings[unsafe.message] = Finding(rule=unsafe.rule, message=unsafe.message, severity="unsafe")
        except CheckpointError as broken:
            error = error or broken
    for file, taken in files.items():
        if taken > file.stat().st_size:
            what = f"tensors take {taken:,} bytes of {file.name}, which has fewer"
            error = error or damaged(path, what, "impossible-size")
    functions = {_operator(function, "name") for function in model["functions"]}
    operators = sorted({_operator(node, "op_type") for node in _nodes(model)} | functions)
    for operator in operators:
        if (severity := _severity(operator, operator in functions)) is not None:
            message = f"has a graph that calls {operator}, which is no operator of ONNX"
            findings[message] = Finding(rule=OPERATOR_RULE, message=message, severity=severity)
    try:
        _check_graphs(path, model)
    except CheckpointError as broken:
        error = error or broken
    if error and not any(finding.severity == "unsafe" for finding in findings.values()):
        raise error
    metadata = {pair.get("key", ""): pair.get("value", "") for pair in model["metadata_props"]}
    return Inspection(list(findings.values()), tuple(operators), tuple(sorted(files)), metadata)


def load(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights under the names that the graph gives them.

    Weights are all constants of the graph except integers of at most one dimension, which only serve to
    compute shapes. Exporters store equal tensors once: a constant that an ``Identity`` node passes on is
    returned under both names. Inspect the file first (:func:`inspect_model`).

    Raises:
        CheckpointError: The file is damaged.
    """
    constants = _constants(path, _decode(path)["graph"])
    return {name: tensor for name, tensor in constants.items() if _is_weight(tensor)}


def load_graph(checkpoint: Checkpoint) -> Graph:
    """Read the graph of a file in order to run it.

    Raises:
        UnsafeFileError: The graph calls custom operators.
        CheckpointError: The file is damaged, or the graph has a form that bcu does not run.
    """
    path = checkpoint.path
    for finding in inspect_model(path).findings:
        if finding.severity == "unsafe":
            hint = "if the network is of a known architecture, name it with --arch: then the graph is not run"
            raise UnsafeFileError(f"{path} {finding.message}", hint, rule=finding.rule)
    model = _decode(path)
    graph = model["graph"]
    constants = _constants(path, graph)
    inputs = [value for value in graph["input"] if value.get("name") not in constants]
    if len(inputs) != 1 or not graph["output"]:
        raise unfit(path, f"it has {len(inputs)} inputs and {len(graph['output'])} outputs")
    versions = {
        opset.get("domain", "") or "ai.onnx": opset.get("version", 0) for opset in model["opset_import"]
    }
    of_input = inputs[0].get("type", {}).get("tensor_type", {})
    shape = of_input.get("shape", {}).get("dim", [])
    return Graph(
        input=inputs[0].get("name", ""),
        input_shape=tuple(size.get("dim_value") for size in shape),
        outputs=tuple(value.get("name", "") for value in graph["output"]),
        nodes=tuple(
            Node(
                operator=_operator(node, "op_type"),
                inputs=tuple(node["input"]),
                outputs=tuple(node["output"]),
                attributes={one.get("name", ""): _value(path, one) for one in node["attribute"]},
            )
            for node in graph["node"]
            if not constants.keys() & set(node["output"])
        ),
        tensors=constants,
        version=versions.get("ai.onnx", 0),
        takes_half=of_input.get("elem_type") == _HALF,
    )


def _decode(path: Path) -> Message:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise damaged(path, "no ONNX file has more than 2 GiB", "impossible-size")
        model = Decoder(SCHEMA).decode(memoryview(path.read_bytes()), "model")
    except TooManyFieldsError as error:
        raise damaged(path, f"as an ONNX model {error}", "impossible-size") from error
    except BrokenMessageError as error:
        raise damaged(path, f"as an ONNX model, {error}", "onnx-layout") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", rule="file-missing") from error
    if "graph" not in model:
        raise damaged(path, "it is an ONNX model without a graph", "onnx-layout")
    return model


def _graphs(message: Message) -> Iterator[Message]:
    """All graphs and functions within a message, including the message itself if it is one."""
    pending = [message]
    while pending:
        item = pending.pop()
        if "node" in item:
            yield item
            for node in item["node"]:
                for attribute in node["attribute"]:
                    pending += attribute["graphs"] + _present(attribute, "g")
            for attribute in item.get("attribute_proto", []):  # a function's defaults
                pending += attribute["graphs"] + _present(attribute, "g")
        pending += item.get("functions", [])
        for holder in (item, *item.get("training_info", [])):
            pending += _present(holder, "graph", "initialization", "algorithm")


def _present(message: Message, *keys: str) -> list[Message]:
    return [message[key] for key in keys if key in message]


def _nodes(message: Message) -> Iterator[Message]:
    return (node for graph in _graphs(message) for node in graph["node"])


def _tensors(model: Message) -> Iterator[Message]:
    """Every tensor in a file: initializers, tensors in attributes, and the parts of sparse tensors."""
    attributes = [one for node in _nodes(model) for one in node["attribute"]]
    attributes += [one for function in model["functions"] for one in function["attribute_proto"]]
    sparse = [one for graph in _graphs(model) for one in graph.get("sparse_initializer", [])]
    for graph in _graphs(model):
        yield from graph.get("initializer", [])
    for attribute in attributes:
        yield from attribute["tensors"] + _present(attribute, "t")
        sparse += attribute["sparse_tensors"] + _present(attribute, "sparse_tensor")
    for one in sparse:
        yield from _present(one, "values", "indices")


def _check_graphs(path: Path, model: Message) -> None:
    """Refuse redefined standard operators, sparse tensors, and names of two values in one graph."""
    for function in model["functions"]:
        if (function.get("domain") or "ai.onnx") in _STANDARD:
            raise unfit(path, f"it redefines {_operator(function, 'name')[:60]}")
    for graph in _graphs(model):
        if graph.get("sparse_initializer"):
            message = f"{path} has sparse tensors"
            raise CheckpointError(message, "export ordinary ones", rule="unsupported-weights")
        names = [tensor.get("name", "") for tensor in graph.get("initializer", [])]
        names += [name for node in graph["node"] for name in node["output"] if name]
        seen: set[str] = set()
        for name in names:
            if name in seen:
                message = f"{path} has two values of the name {name[:60]!r}"
                hint = "different readers see different networks in such a file; get it again"
                raise CheckpointError(message, hint, rule="onnx-duplicate-name")
            seen.add(name)


def _operator(message: Message, key: str) -> str:
    return f"{message.get('domain') or 'ai.onnx'}::{message.get(key, '')}"


def _severity(operator: str, is_function: bool) -> Literal["unsafe", "note"] | None:
    """How bad a call of an operator is; None for standard operators and functions defined in the file."""
    domain = operator.partition("::")[0]
    if operator in _DANGEROUS:
        return "unsafe"
    if is_function or domain in _STANDARD:
        return None
    return "note" if domain in _OF_RUNTIMES else "unsafe"


def _is_constant(node: Message) -> bool:
    return _operator(node, "op_type") == "ai.onnx::Constant" and len(node["output"]) == 1


def _constants(path: Path, graph: Message) -> dict[str, torch.Tensor]:
    """The initializers and the values of ``Constant`` nodes, also under the names of ``Identity`` nodes."""
    import torch

    found = {tensor.get("name", ""): read_tensor(path, tensor) for tensor in graph["initializer"]}
    for node in filter(_is_constant, graph["node"]):
        values = [_value(path, one) for one in node["attribute"]]
        if len(values) != 1 or values[0] is None or isinstance(values[0], str):
            raise unfit(path, f"the constant {node['output'][0][:60]!r} is not of numbers")
        value = values[0] if isinstance(values[0], torch.Tensor) else torch.tensor(values[0])
        found[node["output"][0]] = value
    for node in graph["node"]:
        if (
            _operator(node, "op_type") == "ai.onnx::Identity"
            and node["input"][:1]
            and node["input"][0] in found
        ):
            found |= dict.fromkeys(node["output"][:1], found[node["input"][0]])
    return found


def _is_weight(tensor: torch.Tensor) -> bool:
    return tensor.dim() > 1 or (tensor.dim() == 1 and tensor.is_floating_point())


def _value(path: Path, attribute: Message) -> Any:
    """The value of an attribute; None for a type that bcu does not read, such as a graph."""
    if "t" in attribute:
        return read_tensor(path, attribute["t"])
    if "f" in attribute:
        return struct.unpack("<f", attribute["f"])[0]
    if "i" in attribute:
        return attribute["i"]
    if "s" in attribute:
        return str(attribute["s"], "utf-8", "replace")
    if attribute["floats"]:
        try:
            return unpack_numbers(attribute["floats"], "f")
        except ValueError as error:
            raise unfit(path, f"an attribute of {error}") from error
    return attribute["ints"] if attribute["ints"] or attribute.get("type") == 7 else None
