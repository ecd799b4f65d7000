"""TorchScript archives: tensors and operators found without running anything, running only what is pure."""

from __future__ import annotations

import ast
import io
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from bcu_cli.errors import CheckpointError, UnsafeFileError

from .archive import TorchArchive, damaged
from .checkpoint import Finding
from .inert import Recipe, Record, StorageRef, open_inertly, size_fault
from .opcodes import BrokenPickleError, look
from .operators import UnreadableCodeError, forbidden_operators, is_dangerous, list_operators, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from .checkpoint import Checkpoint

OPERATOR_RULE = "torchscript-operator"
_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_MAX_TENSORS = 100_000  # a module that stands in many places gives its tensors one name in each
_MAX_DEPTH = 64


@dataclass(frozen=True)
class _Class:
    """What the code declares about a class of modules."""

    parameters: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)


def find_faults(path: Path) -> tuple[list[Finding], tuple[str, ...]]:
    """Look at an archive: what its pickles ask for, and which operators its code names.

    Raises:
        CheckpointError: The archive is damaged, or its code is not readable.
    """
    with TorchArchive(path) as archive:
        findings = _look_at_pickles(archive)
        operators = _operators(archive)
    forbidden = forbidden_operators(operators)
    for name in sorted(forbidden, key=lambda name: not is_dangerous(name)):
        message = f"has code that calls {name}, which bcu does not run"
        severity: Literal["unsafe", "note"] = "unsafe" if is_dangerous(name) else "note"
        findings.append(Finding(rule=OPERATOR_RULE, message=message, severity=severity))
    return findings, operators


def load(path: Path) -> dict[str, torch.Tensor]:
    """Read the parameters and buffers under the names that the module's ``state_dict`` would give them.

    Nothing of the archive is run. Look at it first (:func:`find_faults`).

    Raises:
        CheckpointError: The archive is damaged, or its weights are constants in its code.
    """
    with TorchArchive(path) as archive:
        if "byteorder" in archive.names and archive.read("byteorder") != b"little":
            raise CheckpointError(
                f"{path} is stored big-endian",
                "save it on an ordinary (little-endian) machine",
                rule="unsupported-weights",
            )
        classes = _classes(archive)
        try:
            contents = open_inertly(archive.read("data.pkl"))
            fault = size_fault(contents, path.stat().st_size)
        except CheckpointError:
            raise
        except Exception as error:  # the unpickler raises whatever the broken bytes led to
            raise damaged(path, "its data.pkl cannot be followed") from error
        if fault:
            raise damaged(path, fault, "impossible-size")
        reader = _TensorReader(archive)
        tensors: dict[str, torch.Tensor] = {}
        for name, recipe in _named_tensors(path, contents.value, classes, "", 0):
            tensors[name] = reader.tensor(recipe)
            if len(tensors) > _MAX_TENSORS:
                raise damaged(path, f"it names more than {_MAX_TENSORS:,} tensors")
    if not tensors:
        hint = "save it before torch.jit.freeze or torch.jit.optimize_for_inference is applied"
        raise CheckpointError(
            f"{path} holds no named weights: its TorchScript code is frozen", hint, rule="no-weights"
        )
    return tensors


def load_script(checkpoint: Checkpoint) -> torch.jit.ScriptModule:
    """Load a TorchScript archive so that it can be run, if all that its code names is on the allow-list.

    What is loaded is a new archive made from the very members that were looked at, so that no other reading
    of the zip and no change of the file can bring in other code.

    Raises:
        UnsafeFileError: The code or a pickle asks for more than tensor operations; nothing was run.
        CheckpointError: The archive is damaged, or this torch cannot load it.
    """
    import torch

    path = checkpoint.path
    with TorchArchive(path) as archive:
        findings = [finding for finding in _look_at_pickles(archive) if finding.severity == "unsafe"]
        refused = [*forbidden_operators(_operators(archive)), *(finding.message for finding in findings)]
        if refused:
            message = f"{path} holds code that bcu does not run: {', '.join(refused[:3])}"
            hint = "if the network is of a known architecture, name it with --arch: then no code is run"
            raise UnsafeFileError(message, hint, rule=OPERATOR_RULE)
        copy = _repacked(archive)
    try:
        with _without_deprecation():
            module: torch.jit.ScriptModule = torch.jit.load(copy, map_location="cpu")  # type: ignore[no-untyped-call]
            return module
    except Exception as error:  # torch's loader raises RuntimeError and more for code that it cannot read
        raise damaged(path, "torch cannot load its code") from error


def dump(file: Any, module: torch.jit.ScriptModule) -> None:
    """Write a module into an open file."""
    import torch

    with _without_deprecation():
        torch.jit.save(module, file)


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Newer torch announces the end of TorchScript at each call; users cannot act on that here."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=r"`?torch\.jit", category=category)
        yield


def _look_at_pickles(archive: TorchArchive) -> list[Finding]:
    findings = []
    for name in archive.names:
        if name.endswith(".pkl"):
            try:
                findings += look(archive.read(name), script=True)
            except BrokenPickleError as error:
                raise damaged(archive.path, f"its {name} cannot be followed ({error})") from error
    return findings


def _modules(archive: TorchArchive) -> dict[str, ast.Module]:
    modules = {}
    for name in archive.names:
        if name.startswith("code/") and name.endswith(".py"):
            try:
                text = archive.read(name).decode("ascii")
                modules[name.removeprefix("code/").removesuffix(".py").replace("/", ".")] = parse(text)
            except (UnreadableCodeError, UnicodeDecodeError) as error:
                message = f"{archive.path} was not opened: its code {name} is not as torch writes it"
                hint = "get the file from its publisher again"
                raise UnsafeFileError(message, hint, rule="torchscript-code") from error
    return modules


def _operators(archive: TorchArchive) -> tuple[str, ...]:
    import torch

    def is_operator(name: str) -> bool:
        return bool(torch._C._jit_get_schemas_for_operator(name))

    return list_operators(_modules(archive).values(), is_operator)


def _classes(archive: TorchArchive) -> dict[str, _Class]:
    classes = {}
    for module, tree in _modules(archive).items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["Module"]:
                declared = _Class()
                for part in node.body:
                    if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
                        if part.targets[0].id == "__parameters__":
                            declared.parameters.extend(_strings(part.value))
                        elif part.targets[0].id == "__buffers__":
                            declared.buffers.extend(_strings(part.value))
                classes[f"{module}.{node.name}"] = declared
    return classes


def _strings(node: ast.expr) -> list[str]:
    elements = node.elts if isinstance(node, ast.List) else []
    return [item.value for item in elements if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def _named_tensors(
    path: Path, module: Any, classes: dict[str, _Class], prefix: str, depth: int
) -> Iterator[tuple[str, Recipe]]:
    """The tensors of a module in the order of ``state_dict``: its parameters, its buffers, its parts."""
    if not _is_module(module, classes) or depth > _MAX_DEPTH:
        raise damaged(path, "its objects do not fit its code")
    declared = classes[module.qualname]
    for name in [*declared.parameters, *declared.buffers]:
        value = module.attributes.get(name)
        if isinstance(value, Recipe):
            yield prefix + name, value
        elif value is not None:
            raise damaged(path, f"{prefix + name!r} is no tensor")
    for name, value in module.attributes.items():
        if _is_module(value, classes):
            yield from _named_tensors(path, value, classes, f"{prefix}{name}.", depth + 1)


def _is_module(value: Any, classes: dict[str, _Class]) -> TypeGuard[Record]:
    return isinstance(value, Record) and value.qualname in classes


class _TensorReader:
    """Makes tensors from recipes and the storages of an archive."""

    def __init__(self, archive: TorchArchive) -> None:
        self._archive = archive
        self._storages: dict[str, torch.Tensor] = {}

    def tensor(self, recipe: Recipe) -> torch.Tensor:
        """The tensor that a recipe describes; its sizes were checked with :func:`size_fault`."""
        if recipe.name != "torch._utils._rebuild_tensor_v2":
            raise damaged(self._archive.path, f"{recipe.name} makes no tensor")
        storage, offset, shape, stride = recipe.args[:4]
        return self._storage(storage).as_strided(shape, stride, offset).clone()

    def _storage(self, storage: StorageRef) -> torch.Tensor:
        import torch

        if storage.key not in self._storages:
            data = self._archive.read(f"data/{storage.key}")
            if storage.kind not in _DTYPES or len(data) != storage.nbytes:
                why = f"storage {storage.key} of {len(data):,} bytes does not fit its tensor"
                raise damaged(self._archive.path, why)
            dtype = getattr(torch, _DTYPES[storage.kind])
            flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self._storages[storage.key] = flat
        return self._storages[storage.key]


def _repacked(archive: TorchArchive) -> io.BytesIO:
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as target:
        for name in archive.names:
            target.writestr(f"archive/{name}", archive.read(name))
    copy.seek(0)
    return copy
