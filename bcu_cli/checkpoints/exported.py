"""Archives of ``torch.export`` (.pt2): the weights, read from their raw members; the graph is only listed.

torch has no safe way to load such an archive. It needs none here: a JSON table names each tensor, its shape
and the member that holds its bytes. The graph, the sample inputs and everything else stay unopened, and what
could run when others open them (pickles, compiled code) is looked for.
"""

from __future__ import annotations

import ast
import json
import re
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import CheckpointError

from .archive import MAX_PICKLE_BYTES, TorchArchive, damaged
from .checkpoint import Finding
from .inert import StorageRef, tensor_fault
from .opcodes import BrokenPickleError, look
from .operators import forbidden_operators, is_dangerous
from .saved_archive import look_at_unguarded

if TYPE_CHECKING:
    from pathlib import Path

    import torch

MARKER = "archive_format"
"""The member that every archive of torch.export has below its top folder."""
OPERATOR_RULE = "export-operator"
_WEIGHTS, _TABLE = "data/weights/", "_config.json"
_KINDS = {  # torch's numbers of its types in these tables: (as a storage is called, as torch calls it)
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
_HARMLESS = re.compile(
    r"(higher_order|prims|quantized_decomposed)::\w+|math\.\w+|torch\._?sym_\w+|"
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_|xor)"
)
"""Control flow whose graphs are looked at too, decompositions, and arithmetic of sizes."""
_KNOWN_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.format_version|\.data/(version|serialization_id)|"
    r"models/[\w.-]+\.json|data/(weights|constants)/([\w.-]+_config\.json|(weight|tensor)_\d+)|"
    r"data/sample_inputs/[\w.-]+\.pt|extra/[\w.-]+\.(json|txt)"
)
_LONGEST_EXPRESSION = 10_000
_SIZE_METHODS = frozenset({"size", "shape", "stride", "storage_offset", "dim", "ndim", "numel"})
_PLAIN_NODES = (
    *(
        ast.Expression,
        ast.Compare,
        ast.BoolOp,
        ast.BinOp,
        ast.UnaryOp,
        ast.Constant,
        ast.Subscript,
        ast.Tuple,
    ),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)


def find_faults(path: Path) -> tuple[list[Finding], tuple[str, ...]]:
    """Look at an archive: compiled code, pickles among its members, and the operators of its graphs.

    Raises:
        CheckpointError: The archive is damaged.
    """
    with TorchArchive(path, marker=MARKER) as archive:
        findings = []
        for name in archive.names:
            if not _KNOWN_MEMBERS.fullmatch(name):
                message = f"carries {name}, which is no weight, graph or sample of torch.export"
                findings.append(Finding(rule="archive-program", message=message, severity="unsafe"))
            findings += _look_at_member(archive, name)
        findings += _look_at_tables(archive)
        graphs = [
            _json(archive, name)
            for name in archive.names
            if name.startswith("models/") and name.endswith(".json")
        ]
        operators, texts = _collect(graphs)
    for text in texts:
        if not _is_arithmetic(text):
            message = f"has an expression that is no arithmetic: {text[:60]!r}"
            findings.append(Finding(rule="export-expression", message=message, severity="unsafe"))
    for name in forbidden_operators(operators):
        if _is_dangerous(name):
            message = f"has a graph that calls {name}, which is no tensor arithmetic"
            findings.append(Finding(rule=OPERATOR_RULE, message=message, severity="unsafe"))
    return findings, operators


def load(path: Path) -> dict[str, torch.Tensor]:
    """Read the parameters and buffers under the names that the exported module gave them.

    Raises:
        CheckpointError: The archive is damaged, holds no weights, or weights that only a pickle describes.
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


def _look_at_tables(archive: TorchArchive) -> list[Finding]:
    """Each weight or constant that torch's loader would unpickle, and it does so without any limit."""
    findings = []
    for name in archive.names:
        if not (name.startswith("data/") and name.endswith(_TABLE)):
            continue
        table = _json(archive, name)
        config = table.get("config") if isinstance(table, dict) else None
        for key, entry in config.items() if isinstance(config, dict) else ():
            if isinstance(entry, dict) and entry.get("use_pickle") is not False:
                message = f"holds {str(key)[:60]!r} as a pickle, which torch.export.load opens without limits"
                findings.append(Finding(rule="export-pickle", message=message, severity="unsafe"))
    return findings


def _look_at_member(archive: TorchArchive, name: str) -> list[Finding]:
    """What is unsafe about a member that is a pickle, or an archive of torch with pickles in it."""
    if name.endswith(".pkl"):
        return _look(archive, name, archive.read(name))
    if not name.startswith("data/sample_inputs/"):
        return []
    data = archive.read(name)
    if not data.startswith(b"PK\x03\x04"):
        return _look(archive, name, data)
    with TorchArchive(archive.path, data=data) as inner:
        return look_at_unguarded(inner)


def _look(archive: TorchArchive, name: str, data: bytes) -> list[Finding]:
    try:
        return look(data)
    except BrokenPickleError as error:
        raise damaged(archive.path, f"its {name} cannot be followed ({error})") from error


def _collect(graphs: list[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the calls in graphs, also within others, go to; and the expressions that torch evaluates."""
    operators: set[str] = set()
    texts: set[str] = set()
    pending = list(graphs)
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            target, guards = item.get("target"), item.get("guards_code")
            if isinstance(target, str) and "inputs" in item:
                operators.add(_operator(target))
            texts.update(
                str(text) for text in (guards if isinstance(guards, list) else [guards] if guards else [])
            )
            if "expr_str" in item:
                texts.add(str(item["expr_str"]))
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return tuple(sorted(operators)), tuple(sorted(texts))


def _operator(target: str) -> str:
    """``torch.ops.aten.conv2d.default`` as ``aten::conv2d``; anything else as it stands."""
    parts = target.split(".")
    if parts[:2] == ["torch", "ops"] and len(parts) == 5:
        return f"{parts[2]}::{parts[3]}"
    return target


def _is_arithmetic(text: str) -> bool:
    """Whether an expression, which torch evaluates as Python, only compares and reckons with sizes."""
    try:
        tree = ast.parse(text, mode="eval") if len(text) <= _LONGEST_EXPRESSION else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return tree is not None and all(_is_plain_node(node) for node in ast.walk(tree))


def _is_plain_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        return name in _SIZE_METHODS if isinstance(called, ast.Attribute) else name[:1].isupper()
    if isinstance(node, ast.Attribute):
        return node.attr in _SIZE_METHODS
    if isinstance(node, ast.Name):
        return "__" not in node.id
    return isinstance(node, _PLAIN_NODES)


def _is_dangerous(operator: str) -> bool:
    """Whether a call leaves the arithmetic of tensors and sizes."""
    return _HARMLESS.fullmatch(operator) is None and is_dangerous(operator)


def _json(archive: TorchArchive, name: str) -> Any:
    if archive.size_of(name) > MAX_PICKLE_BYTES:
        raise damaged(archive.path, f"its {name} is too large", "impossible-size")
    try:
        return json.loads(archive.read(name))
    except (ValueError, RecursionError) as error:
        raise damaged(archive.path, f"its {name} is not valid JSON") from error


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
