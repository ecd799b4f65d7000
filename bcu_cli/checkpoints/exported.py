"""Archives of ``torch.export`` (.pt2): reading the weights and listing the operators of the graph.

torch has no safe loader for such archives, and bcu needs none. A JSON table names each tensor, its shape and
the member with its bytes. The graph and the sample inputs are never loaded, only searched for what could run
in other programs: pickles and compiled code.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import CheckpointError

from .archive import MAX_PICKLE_BYTES, TorchArchive, damaged
from .checkpoint import Finding
from .exported_schema import NAME_RULE, Check, UnknownFormError
from .exported_text import is_plain, is_size_arithmetic, operator_of
from .inert import StorageRef, tensor_fault
from .operators import forbidden_operators, is_dangerous
from .pickle_inspection import BrokenPickleError, inspect_pickle
from .saved_archive import find_faults_strictly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

MARKER = "archive_format"
"""The member that every ``torch.export`` archive has in its top folder."""
OPERATOR_RULE, UNCHECKED_RULE = "export-operator", "export-unchecked-operator"
_OTHER_ARITHMETIC = re.compile(r"(prims|quantized_decomposed)::\w+", re.ASCII)
"""Operators that decompositions put into a graph."""
_WEIGHTS, _TABLE = "data/weights/", "_config.json"
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
            "bcu never runs the graph, and what others do that run it is not covered"
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
            return {str(name): _tensor(archive, str(name), entry) for name, entry in entries.items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise damaged(path, "its table of weights is not as torch writes it") from error


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


def _tensor(archive: TorchArchive, name: str, entry: Any) -> torch.Tensor:
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
    data = archive.read(f"{_WEIGHTS}{entry['path_name']}")
    item_bytes = StorageRef(kind, name, 1).nbytes
    storage = StorageRef(kind, name, len(data) // item_bytes)
    if fault := tensor_fault((storage, offset, shape, stride), limit=len(data)):
        raise damaged(archive.path, f"{name!r}: {fault}", "impossible-size")
    if not data:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    flat = torch.frombuffer(bytearray(data[: storage.nbytes]), dtype=getattr(torch, dtype))
    return flat.as_strided(shape, stride, offset).clone()
