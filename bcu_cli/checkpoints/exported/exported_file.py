"""Archives of ``torch.export`` (.pt2): reading weights and graph, and searching for what is unsafe.

torch has no safe loader for such archives, and bcu needs none. A JSON table names each tensor, its shape and
the member with its bytes. The graph is read as data (:func:`load_program`), and bcu's own code computes the
operators that it names. The sample inputs are never loaded. All of it is searched for what could run in other
programs: pickles and compiled code.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints.archive import MAX_PICKLE_BYTES, TorchArchive, damaged
from bcu_cli.checkpoints.checkpoint import Checkpoint, Finding
from bcu_cli.checkpoints.exported.schema import NAME_RULE, Check, UnknownFormError
from bcu_cli.checkpoints.exported.texts import is_plain, is_size_arithmetic, operator_of
from bcu_cli.checkpoints.pickles.inert import StorageRef, tensor_fault
from bcu_cli.checkpoints.pickles.inspection import BrokenPickleError, inspect_pickle
from bcu_cli.checkpoints.pickles.saved_archive import find_faults_strictly
from bcu_cli.checkpoints.torchscript.operators import forbidden_operators, is_dangerous
from bcu_cli.errors import CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

MARKER = "archive_format"
"""The member that every ``torch.export`` archive has in its top folder."""
OPERATOR_RULE, UNCHECKED_RULE = "export-operator", "export-unchecked-operator"
_OTHER_ARITHMETIC = re.compile(r"(prims|quantized_decomposed)::\w+", re.ASCII)
"""Operators that decompositions put into a graph."""
_WEIGHTS, _CONSTANTS, _TABLE = "data/weights/", "data/constants/", "_config.json"
_KINDS = {  # type code in the tables: (name of the storage class, name of the torch dtype)
    1: ("ByteStorage", "uint8"),
    2: ("CharStorage", "int8"),
    3: ("ShortStorage", "int16"),
    4: ("IntStorage", "int32"),
    5: ("LongStorage", "int64"),
    6: ("HalfStorage", "float16"),
    7: ("FloatStorage", "float32"),
    8: ("DoubleStorage", "float64"),
    12: ("BoolStorage", "bool"),
    13: ("BFloat16Storage", "bfloat16"),
}
_HELD = {
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}
"""The kinds of a graph's inputs that hold a tensor, each with the field of its name."""
_BY_NAME, _STRIDED = 2, 7
_MEMORY_FORMATS = {1: 0, 2: 2, 3: 3, 4: 1}
"""torch's numbers of memory formats in a graph, and those that its operators take."""
_KNOWN_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.format_version|\.data/(version|serialization_id)|"
    r"models/[\w.-]+\.json|data/(weights|constants)/([\w.-]+_config\.json|(weight|tensor)_\d+)|"
    r"data/sample_inputs/[\w.-]+\.pt|extra/[\w.-]+\.(json|txt)",
    re.ASCII,
)
_TENSOR_CONSTANT = re.compile(r"tensor_\d+", re.ASCII)
_KERNELS = """
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update
    native_batch_norm_backward native_group_norm native_layer_norm _weight_norm _weight_norm_interface
    _embedding_bag _embedding_bag_forward_only _unsafe_index _unsafe_index_put _unsafe_view
"""
_UNCHECKED = frozenset(f"aten::{name}" for name in _KERNELS.split())
"""Internal kernels that do not check their arguments: wrong tensors can make them leave their memory."""


@dataclass(frozen=True)
class Value:
    """A value of an exported graph among arguments, by its name."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of an exported graph.

    Attributes:
        operator: Name of the operator, such as ``aten::conv2d`` or ``_operator.add``.
        args: Positional arguments: numbers, texts, None, lists of these, and :class:`Value`.
        named: Keyword arguments of the same kinds, by name.
        outputs: Names of the results; an unused result has an empty name.
    """

    operator: str
    args: tuple[Any, ...]
    named: dict[str, Any]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Program:
    """The graph of a ``torch.export`` archive.

    Attributes:
        input: Name of the only input.
        input_shape: Shape of the input, with None for a size that is not fixed.
        input_dtype: Type of the input, by its name in torch.
        outputs: Names of the outputs that are tensors.
        operations: The operations, each after those that it depends on.
        tensors: Weights and constants, by the names of their values.
        names: Names in the exported module, by the names of the values.
        parameters: Names of the values that are parameters.
    """

    input: str
    input_shape: tuple[int | None, ...]
    input_dtype: str
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    tensors: dict[str, torch.Tensor]
    names: dict[str, str]
    parameters: frozenset[str]


def find_faults(path: Path) -> tuple[list[Finding], tuple[str, ...]]:
    """Find compiled code and pickles in an archive, and list the operators of its graphs.

    Returns:
        The findings, and the operators, sorted.

    Raises:
        CheckpointError: The archive is damaged.
    """
    with TorchArchive(path, marker=MARKER) as archive:
        findings = []
        for name in archive.names:
            if not _KNOWN_MEMBERS.fullmatch(name):
                message = f"carries {name}, which is no weight, graph or sample input of torch.export"
                findings.append(Finding(rule="archive-program", message=message, severity="unsafe"))
            findings += _inspect_member(archive, name)
        findings += _find_pickled_tensors(archive)
        check, unknown = _checked(archive)
    findings += [Finding(rule=rule, message=text, severity="unsafe") for rule, text in check.faults]
    operators = tuple(sorted({operator_of(target) for target in check.targets}))
    findings += _judge(operators)
    if unknown and not any(finding.severity == "unsafe" for finding in findings):
        hint = "if a newer torch wrote it, update bcu; otherwise get it from its publisher again"
        raise CheckpointError(f"{path} is not as torch writes it: {unknown}", hint, rule="export-layout")
    return findings, operators


def _checked(archive: TorchArchive) -> tuple[Check, str]:
    """The result of checking all graphs and tables, and the first part that torch would not write."""
    check, unknown = Check(), ""
    for name in archive.names:
        is_table = name.startswith("data/") and name.endswith(_TABLE)
        if not is_table and not (name.startswith("models/") and name.endswith(".json")):
            continue
        try:
            check.check(_json(archive, name), "Payload" if is_table else "Program", name)
        except UnknownFormError as error:
            unknown = unknown or str(error)
    return check, unknown


def _judge(operators: tuple[str, ...]) -> list[Finding]:
    """Findings about operators that are unsafe or do not check their arguments."""
    findings = []
    for name in forbidden_operators(operators):
        if not is_size_arithmetic(name) and not _OTHER_ARITHMETIC.fullmatch(name) and is_dangerous(name):
            message = f"has a graph that calls {name}, which is no tensor arithmetic"
            findings.append(Finding(rule=OPERATOR_RULE, message=message, severity="unsafe"))
    if unchecked := sorted(_UNCHECKED & set(operators)):
        message = (
            f"has a graph that calls {', '.join(unchecked)}: kernels that do not check their arguments; "
            "bcu does not compute it, and what other programs do that run it is not covered"
        )
        findings.append(Finding(rule=UNCHECKED_RULE, message=message, severity="note"))
    return findings


def load(path: Path) -> dict[str, torch.Tensor]:
    """Read the parameters and buffers under the names that the exported module gave them.

    Raises:
        CheckpointError: The archive is damaged, holds no weights, or stores weights as pickles.
    """
    with TorchArchive(path, marker=MARKER) as archive:
        if "byteorder" in archive.names and archive.read("byteorder") != b"little":
            hint = "save it on an ordinary (little-endian) machine"
            raise CheckpointError(f"{path} is stored big-endian", hint, rule="unsupported-weights")
        tables = [
            name for name in archive.names if name.startswith(_WEIGHTS) and name.endswith("_config.json")
        ]
        if len(tables) != 1:
            what = f"holds {len(tables)} models" if tables else "holds no weights"
            raise CheckpointError(f"{path} {what}", "export one module", rule="no-weights")
        table = _json(archive, tables[0])
        try:
            entries = dict(table["config"])
            return {
                str(name): _tensor(archive, str(name), entry, _WEIGHTS) for name, entry in entries.items()
            }
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise damaged(path, "its table of weights is not as torch writes it") from error


def load_program(checkpoint: Checkpoint) -> Program:
    """Read the graph of an archive to run it.

    Raises:
        UnsafeFileError: There is something unsafe in the archive.
        CheckpointError: It is damaged, or of a form that bcu does not run.
    """
    path = checkpoint.path
    for finding in find_faults(path)[0]:
        if finding.severity == "unsafe":
            hint = "if the network is of a known architecture, name it with --arch: then the graph is not run"
            raise UnsafeFileError(f"{path} {finding.message}", hint, rule=finding.rule)
    with TorchArchive(path, marker=MARKER) as archive:
        models = [name for name in archive.names if re.fullmatch(r"models/[\w.-]+\.json", name)]
        if len(models) != 1:
            raise _unfit(path, f"it holds {len(models)} graphs")
        try:
            return _program(archive, _json(archive, models[0])["graph_module"])
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise damaged(path, "its graph is not as torch writes it") from error


def _unfit(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} has a graph that bcu does not run: {why}", "export one plain module")


def _program(archive: TorchArchive, module: dict[str, Any]) -> Program:
    graph, signature = module["graph"], module["signature"]
    names: dict[str, str] = {}
    parameters, inputs = set(), []
    for spec in signature["input_specs"]:
        ((kind, given),) = spec.items()
        if kind == "user_input":
            inputs.append(given["arg"].get("as_tensor", {}).get("name"))
        elif kind in _HELD:
            names[given["arg"]["name"]] = given[_HELD[kind]]
            parameters.update([given["arg"]["name"]] if kind == "parameter" else [])
        else:
            raise _unfit(archive.path, f"it takes a {kind}")
    outputs = [spec.get("user_output", {}).get("arg", {}) for spec in signature["output_specs"]]
    results = [one["as_tensor"]["name"] for one in outputs if "as_tensor" in one]
    if len(inputs) != 1 or inputs[0] is None or not results:
        raise _unfit(archive.path, f"it has {len(inputs)} inputs and {len(results)} outputs")
    held = _held(archive)
    taken = graph["tensor_values"][inputs[0]]
    return Program(
        input=inputs[0],
        input_shape=tuple(size.get("as_int") for size in taken["sizes"]),
        input_dtype=_KINDS[taken["dtype"]][1],
        outputs=tuple(results),
        operations=tuple(_operation(archive.path, node) for node in graph["nodes"]),
        tensors={value: held[name] for value, name in names.items()},
        names=names,
        parameters=frozenset(parameters),
    )


def _held(archive: TorchArchive) -> dict[str, torch.Tensor]:
    """All weights and constants of an archive by the names that the exported module gave them."""
    found = {}
    for folder in (_WEIGHTS, _CONSTANTS):
        for name in archive.names:
            if name.startswith(folder) and name.endswith(_TABLE):
                for key, entry in _json(archive, name)["config"].items():
                    found[str(key)] = _tensor(archive, str(key), entry, folder)
    return found


def _operation(path: Path, node: dict[str, Any]) -> Operation:
    args, named = [], {}
    for one in node["inputs"]:
        value = _argument(path, one["arg"])
        if one.get("kind") == _BY_NAME:
            named[one["name"]] = value
        else:
            args.append(value)
    return Operation(
        operator=operator_of(node["target"]),
        args=tuple(args),
        named=named,
        outputs=tuple(name for one in node["outputs"] for name in _results(one)),
    )


def _results(given: dict[str, Any]) -> list[str]:
    """The names of an output of an operation, several for a list; an unused output has an empty name."""
    ((_, value),) = given.items()
    named = value if isinstance(value, list) else [value]
    tables = [each if isinstance(each, dict) else {} for each in named]
    return [str(each.get("name", each.get("as_name", ""))) for each in tables]


def _argument(path: Path, given: dict[str, Any]) -> Any:
    """The value of an argument; names of other values as :class:`Value`."""
    ((kind, value),) = given.items()
    if kind == "as_none":
        return None
    if kind in {"as_tensor", "as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"}:
        return _one(value)
    if kind in {"as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"}:
        return [_one(each) for each in value]
    if kind == "as_scalar_type":
        return _KINDS[value][1]
    if kind in {"as_int", "as_bool", "as_string", "as_ints", "as_bools", "as_strings"}:
        return value
    if kind == "as_float":
        return float(value)
    if kind == "as_floats":
        return [float(each) for each in value]
    if kind == "as_memory_format":
        return _MEMORY_FORMATS[value]
    if kind == "as_device" or (kind == "as_layout" and value == _STRIDED):
        return None  # all tensors are strided, and on the device of the network
    raise _unfit(path, f"an operator of it takes a value of the kind {kind}")


def _one(value: dict[str, Any]) -> Any:
    """A tensor, number or None among arguments: ``{"name": ...}`` or one of a few such kinds."""
    if "name" in value:
        return Value(value["name"])
    ((kind, given),) = value.items()
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return Value(given["name"])
    return Value(given) if kind == "as_name" else given


def _find_pickled_tensors(archive: TorchArchive) -> list[Finding]:
    """Findings about weights and constants that torch's loader would unpickle without restrictions."""
    findings = []
    for name in archive.names:
        if not (name.startswith("data/") and name.endswith(_TABLE)):
            continue
        table = _json(archive, name)
        config = table.get("config") if isinstance(table, dict) else None
        for key, entry in config.items() if isinstance(config, dict) else ():
            if isinstance(entry, dict) and _is_unpickled(entry, name):
                message = f"holds {str(key)[:60]!r} as a pickle, which torch.export.load opens without limits"
                findings.append(Finding(rule="export-pickle", message=message, severity="unsafe"))
    return findings


def _is_unpickled(entry: dict[str, Any], table: str) -> bool:
    """Whether torch unpickles an entry: it is marked so, or it is a constant whose member is no tensor."""
    is_constant = table.startswith("data/constants/")
    odd = is_constant and not _TENSOR_CONSTANT.fullmatch(str(entry.get("path_name")))
    return entry.get("use_pickle") is not False or odd


def _inspect_member(archive: TorchArchive, name: str) -> list[Finding]:
    """Findings about a member that is a pickle or a nested archive of torch."""
    if name.endswith(".pkl"):
        return _inspect_pickle(archive, name, archive.read(name))
    if not name.startswith("data/sample_inputs/"):
        return []
    data = archive.read(name)
    if not data:
        return []  # the file was saved without sample inputs
    if not data.startswith(b"PK\x03\x04"):
        message = f"has {name}, which is no archive of torch.save: torch opens it without limits"
        odd = Finding(rule="export-pickle", message=message, severity="unsafe")
        return _inspect_pickle(archive, name, data) or [odd]
    with TorchArchive(archive.path, data=data) as inner:
        return _check_keys(inner, name) or find_faults_strictly(inner)


def _check_keys(inner: TorchArchive, name: str) -> list[Finding]:
    """Findings about dictionary keys in the sample inputs, which torch pastes into generated source code."""
    odd = next((text for text in _texts(inner.read("data.pkl")) if not is_plain(text)), None)
    if odd is None:
        return []
    message = f"has an odd text among its sample inputs, {name}: {odd[:60]!r}"
    return [Finding(rule=NAME_RULE, message=message, severity="unsafe")]


def _texts(data: bytes) -> Iterator[str]:
    """All texts in a pickle that has been inspected before."""
    try:
        yield from (value for _, value, _ in pickletools.genops(io.BytesIO(data)) if isinstance(value, str))
    except ValueError:
        return  # a broken end, which the inspection has handled


def _inspect_pickle(archive: TorchArchive, name: str, data: bytes) -> list[Finding]:
    try:
        return inspect_pickle(data, strict=True)
    except BrokenPickleError as error:
        raise damaged(archive.path, f"its {name} cannot be followed ({error})") from error


def _json(archive: TorchArchive, name: str) -> Any:
    if archive.size_of(name) > MAX_PICKLE_BYTES:
        raise damaged(archive.path, f"its {name} is too large", "impossible-size")
    try:
        return json.loads(archive.read(name), object_pairs_hook=_table)
    except (ValueError, RecursionError) as error:
        raise damaged(archive.path, f"its {name} is not valid JSON") from error


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; duplicate keys are refused, since readers disagree on which of them counts."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is duplicated")
    return table


def _tensor(archive: TorchArchive, name: str, entry: Any, folder: str) -> torch.Tensor:
    import torch

    if entry["use_pickle"]:
        message = f"{archive.path}: {name!r} is of a kind that only a pickle describes"
        raise CheckpointError(message, "export plain tensors", rule="unsupported-weights")
    described = entry["tensor_meta"]
    if described["dtype"] not in _KINDS:
        message = f"{archive.path}: {name!r} is of a type that bcu does not know ({described['dtype']!r})"
        raise CheckpointError(message, "export it in float32", rule="unsupported-weights")
    kind, dtype = _KINDS[described["dtype"]]
    shape, stride = (tuple(size["as_int"] for size in described[key]) for key in ("sizes", "strides"))
    offset = described["storage_offset"]["as_int"]
    data = archive.read(f"{folder}{entry['path_name']}")
    item_bytes = StorageRef(kind, name, 1).nbytes
    storage = StorageRef(kind, name, len(data) // item_bytes)
    if fault := tensor_fault((storage, offset, shape, stride), limit=len(data)):
        raise damaged(archive.path, f"{name!r}: {fault}", "impossible-size")
    if not data:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    flat = torch.frombuffer(bytearray(data[: storage.nbytes]), dtype=getattr(torch, dtype))
    return flat.as_strided(shape, stride, offset).clone()
