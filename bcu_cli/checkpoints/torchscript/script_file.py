"""TorchScript archives: reading code and tensors, and writing new tensor values, without running code."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeGuard

from bcu_cli.checkpoints.archive import TorchArchive, damaged
from bcu_cli.checkpoints.checkpoint import Finding
from bcu_cli.checkpoints.pickles.inert import (
    KIND_DTYPES,
    RecordedCall,
    ScriptRecord,
    StorageRef,
    open_inertly,
    size_fault,
)
from bcu_cli.checkpoints.pickles.inspection import BrokenPickleError, inspect_pickle
from bcu_cli.checkpoints.torchscript.bytecode import BYTECODE, UnreadableBytecodeError, operators_of
from bcu_cli.checkpoints.torchscript.operators import (
    UnreadableCodeError,
    forbidden_operators,
    is_dangerous,
    list_operators,
)
from bcu_cli.checkpoints.torchscript.script_code import ScriptClass, ScriptCode, declared, parse_all
from bcu_cli.errors import CheckpointError, OutputError, UnsafeFileError

if TYPE_CHECKING:
    import ast
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import torch

    from bcu_cli.checkpoints.checkpoint import Checkpoint

OPERATOR_RULE = "torchscript-operator"
_MAX_TENSORS = 100_000  # a module that is used in many places gives its tensors one name in each
_MAX_DEPTH = 64
_LITE_MEMBERS = (BYTECODE, "mobile_debug_handles.pkl")
_DATE = (1980, 1, 1, 0, 0, 0)  # a fixed date, so that equal tensors give equal bytes


@dataclass(frozen=True, eq=False)
class ScriptObject:
    """A module or enumeration member of an archive.

    Args:
        of: Class of the object.
        attributes: Attributes of a module, by name; an enumeration member has only ``value``.
    """

    of: ScriptClass
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Script:
    """The contents of a TorchScript archive.

    Args:
        path: The file.
        code: The classes and functions that its code declares.
        root: The outermost module of the network.
        constants: The tensors and other values that the code names ``CONSTANTS.c0`` and so on.
    """

    path: Path
    code: ScriptCode
    root: ScriptObject
    constants: tuple[Any, ...]


def find_faults(path: Path) -> tuple[list[Finding], tuple[str, ...]]:
    """Inspect the pickles of an archive, and list the operators that its code names.

    Returns:
        The findings, and the operators, sorted.

    Raises:
        CheckpointError: The archive is damaged, or its code is not readable.
    """
    with TorchArchive(path) as archive:
        findings = _inspect_pickles(archive)
        operators = _operators(archive)
        lite = _lite_operators(archive)
    if lite is None:
        message = f"has a {BYTECODE} for torch's lite interpreter that cannot be followed"
        findings.append(Finding(rule=OPERATOR_RULE, message=message, severity="unsafe"))
    findings += _judge(operators, "code")
    findings += _judge(sorted(set(lite or ()) - set(operators)), BYTECODE)
    return findings, tuple(sorted({*operators, *(lite or ())}))


def left_out(path: Path) -> tuple[str, ...]:
    """The members for torch's lite interpreter, which are not written back.

    Raises:
        CheckpointError: The archive is damaged.
    """
    with TorchArchive(path) as archive:
        return tuple(name for name in archive.names if name in _LITE_MEMBERS)


def load(path: Path) -> dict[str, torch.Tensor]:
    """Read the parameters and buffers under the names that the module's ``state_dict`` would give them.

    No code of the archive is run. Inspect the archive first (:func:`find_faults`).

    Raises:
        CheckpointError: The archive is damaged, or its weights are constants in its code.
    """
    with TorchArchive(path) as archive:
        classes = _code(archive).classes
        root = _open_pickle(archive, "data.pkl")
        reader = _ValueReader(archive, classes)
        tensors: dict[str, torch.Tensor] = {}
        for name, call in _named_tensors(path, root, classes):
            tensors[name] = reader.tensor(call).clone()
            if len(tensors) > _MAX_TENSORS:
                raise damaged(path, f"it names more than {_MAX_TENSORS:,} tensors")
    if not tensors:
        hint = (
            "get the file as it was before torch.jit.freeze or torch.jit.optimize_for_inference; or, if you "
            "trust it, torch.onnx.export(torch.jit.load(FILE), (images,), 'model.onnx', dynamo=False)"
        )
        raise CheckpointError(
            f"{path} holds no named weights: its TorchScript code is frozen, so that they are nameless "
            "constants in it, which bcu can read but not write back",
            hint,
            rule="no-weights",
        )
    return tensors


def open_script(checkpoint: Checkpoint) -> Script:
    """Read the code, objects and constants of a TorchScript archive whose operators are all allowed.

    No code is run here. :class:`bcu_cli.models.embedded.script.ScriptNetwork` evaluates it, without torch's
    interpreter.

    Raises:
        UnsafeFileError: The code or a pickle does more than tensor operations.
        CheckpointError: The archive is damaged.
    """
    path = checkpoint.path
    with TorchArchive(path) as archive:
        findings = [finding for finding in _inspect_pickles(archive) if finding.severity == "unsafe"]
        refused = [*forbidden_operators(_operators(archive)), *(finding.message for finding in findings)]
        if refused:
            message = f"{path} holds code that bcu does not run: {', '.join(refused[:3])}"
            hint = "if the network is of a known architecture, name it with --arch: then no code is run"
            raise UnsafeFileError(message, hint, rule=OPERATOR_RULE)
        code = _code(archive)
        root = _ValueReader(archive, code.classes).value(_open_pickle(archive, "data.pkl"))
        if not isinstance(root, ScriptObject) or root.of.kind != "Module":
            raise damaged(path, "its objects do not fit its code")
        constants: Any = ()
        if "constants.pkl" in archive.names:
            reader = _ValueReader(archive, code.classes, folder="constants")
            constants = reader.value(_open_pickle(archive, "constants.pkl"))
        if not isinstance(constants, tuple):
            raise damaged(path, "its constants are no tuple")
    return Script(path=path, code=code, root=root, constants=constants)


def dump(file: BinaryIO, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a copy of an archive with new values in its tensors.

    All members keep their bytes, except the storages of the named tensors. Each tensor keeps its type, shape
    and stride, and tensors that shared memory still share it. The members for torch's lite interpreter are
    omitted. Equal tensors give equal bytes.

    Args:
        file: The file to write to.
        path: The archive to copy.
        tensors: New values of all its parameters and buffers, by their names in ``state_dict``.

    Raises:
        CheckpointError: The archive is damaged.
        OutputError: A tensor is missing.
    """
    with TorchArchive(path) as archive, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
        reader = _ValueReader(archive, _code(archive).classes)
        reader.fill(tensors)
        changed = {f"data/{key}": data for key, data in reader.storages()}
        for name in archive.names:
            if name not in _LITE_MEMBERS:
                data = changed[name] if name in changed else archive.read(name)
                target.writestr(zipfile.ZipInfo(f"archive/{name}", _DATE), data)


def _judge(operators: Iterable[str], what: str) -> list[Finding]:
    """One finding for each operator that is not allowed, the dangerous ones first."""
    findings = []
    for name in sorted(forbidden_operators(operators), key=lambda name: not is_dangerous(name)):
        message = f"has {what} that calls {name}, which bcu does not run"
        severity: Literal["unsafe", "note"] = "unsafe" if is_dangerous(name) else "note"
        findings.append(Finding(rule=OPERATOR_RULE, message=message, severity=severity))
    return findings


def _lite_operators(archive: TorchArchive) -> tuple[str, ...] | None:
    """The operators that the lite interpreter would call; None if the bytecode is not readable."""
    if BYTECODE not in archive.names:
        return ()
    try:
        return operators_of(archive.read(BYTECODE))
    except UnreadableBytecodeError:
        return None


def _inspect_pickles(archive: TorchArchive) -> list[Finding]:
    findings = []
    for name in archive.names:
        if name.endswith(".pkl"):
            try:
                findings += inspect_pickle(archive.read(name), script=True)
            except BrokenPickleError as error:
                raise damaged(archive.path, f"its {name} cannot be followed ({error})") from error
    return findings


def _modules(archive: TorchArchive) -> dict[str, ast.Module]:
    texts = {}
    for name in archive.names:
        if name.startswith("code/") and name.endswith(".py"):
            module = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
            texts[module] = archive.read(name)
    try:
        return parse_all(texts)
    except UnreadableCodeError as error:
        message = f"{archive.path} was not opened: its code is not as torch writes it: {error}"
        hint = "get the file from its publisher again"
        raise UnsafeFileError(message, hint, rule="torchscript-code") from error


def _code(archive: TorchArchive) -> ScriptCode:
    return declared(_modules(archive))


def _operators(archive: TorchArchive) -> tuple[str, ...]:
    import torch

    def is_operator(name: str) -> bool:
        return bool(torch._C._jit_get_schemas_for_operator(name))

    return list_operators(_modules(archive).values(), is_operator)


def _open_pickle(archive: TorchArchive, name: str) -> Any:
    """The value of a pickle in an archive, with calls only recorded and tensor sizes checked."""
    path = archive.path
    if "byteorder" in archive.names and archive.read("byteorder") != b"little":
        raise CheckpointError(
            f"{path} is stored big-endian",
            "save it on an ordinary (little-endian) machine",
            rule="unsupported-weights",
        )
    try:
        contents = open_inertly(archive.read(name))
        fault = size_fault(contents, path.stat().st_size)
    except CheckpointError:
        raise
    except Exception as error:  # broken bytes can raise any error in the unpickler
        raise damaged(path, f"its {name} cannot be followed") from error
    if fault:
        raise damaged(path, fault, "impossible-size")
    return contents.value


def _named_tensors(
    path: Path, module: Any, classes: dict[str, ScriptClass], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, RecordedCall]]:
    """The tensors of a module in the order of ``state_dict``: parameters, buffers, then submodules."""
    if not _is_module(module, classes) or depth > _MAX_DEPTH:
        raise damaged(path, "its objects do not fit its code")
    declared = classes[module.qualname]
    for name in [*declared.parameters, *declared.buffers]:
        value = module.attributes.get(name)
        if isinstance(value, RecordedCall):
            yield prefix + name, value
        elif value is not None:
            raise damaged(path, f"{prefix + name!r} is no tensor")
    for name, value in module.attributes.items():
        if _is_module(value, classes):
            yield from _named_tensors(path, value, classes, f"{prefix}{name}.", depth + 1)


def _is_module(value: Any, classes: dict[str, ScriptClass]) -> TypeGuard[ScriptRecord]:
    return (
        isinstance(value, ScriptRecord)
        and value.qualname in classes
        and classes[value.qualname].kind == "Module"
    )


class _ValueReader:
    """Builds the tensors, modules, lists and other values that a pickle of an archive describes.

    Args:
        archive: The archive.
        classes: The classes that its code declares, by full name.
        folder: Folder in the archive with the storages of the pickle's tensors.
    """

    def __init__(
        self, archive: TorchArchive, classes: dict[str, ScriptClass], *, folder: str = "data"
    ) -> None:
        self._archive = archive
        self._classes = classes
        self._folder = folder
        self._storages: dict[str, torch.Tensor] = {}
        self._tensors: dict[tuple[Any, ...], torch.Tensor] = {}
        self._objects: dict[int, ScriptObject] = {}

    def tensor(self, call: RecordedCall) -> torch.Tensor:
        """The tensor that a recorded call describes; its sizes have been checked with :func:`size_fault`.

        Tensors of one storage share memory, and equal views of a storage give the same tensor object.
        """
        if call.name != "torch._utils._rebuild_tensor_v2":
            raise damaged(self._archive.path, f"{call.name} makes no tensor")
        storage, offset, shape, stride = call.args[:4]
        key = (storage.key, offset, shape, stride)
        if key not in self._tensors:
            self._tensors[key] = self._storage(storage).as_strided(shape, stride, offset)
        return self._tensors[key]

    def value(self, value: Any, depth: int = 0) -> Any:
        """Build the value that a part of the pickle describes."""
        if depth > _MAX_DEPTH:
            raise damaged(self._archive.path, "its objects are nested too deeply")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            return type(value)(self.value(item, depth + 1) for item in value)
        if isinstance(value, dict):
            return {self.value(key, depth + 1): self.value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, ScriptRecord):
            return self._object(value, depth)
        if isinstance(value, RecordedCall):
            return self._call_result(value, depth)
        raise damaged(self._archive.path, f"it holds a {type(value).__name__}, which no network needs")

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the values of the network's parameters and buffers."""
        path = self._archive.path
        for name, call in _named_tensors(path, _open_pickle(self._archive, "data.pkl"), self._classes):
            tensor = self.tensor(call)
            if name not in tensors or tensors[name].numel() != tensor.numel():
                raise OutputError(
                    f"the network has no tensor {name} as {path} has it", "report this: it is a bug"
                )
            tensor.copy_(tensors[name].detach().reshape(tensor.shape))

    def storages(self) -> Iterator[tuple[str, bytes]]:
        """The keys and current bytes of all storages that have been read."""
        import torch

        for key, flat in self._storages.items():
            yield key, flat.view(torch.uint8).numpy().tobytes()

    def _object(self, record: ScriptRecord, depth: int) -> ScriptObject:
        of = self._classes.get(record.qualname)
        if of is None or of.kind not in {"Module", "Enum"}:
            raise damaged(self._archive.path, "its objects do not fit its code")
        if id(record) not in self._objects:
            made = self._objects[id(record)] = ScriptObject(of, {})
            attributes = record.attributes if of.kind == "Module" else {"value": record.arguments[0]}
            for name, value in attributes.items():
                made.attributes[name] = self.value(value, depth + 1)
        return self._objects[id(record)]

    def _call_result(self, call: RecordedCall, depth: int) -> Any:
        """Build the result of a recorded call: a typed list, a device or a tensor."""
        if call.name.startswith("torch.jit._pickle.") and call.args:
            return self.value(call.args[0], depth + 1)
        if call.name == "torch.device":
            import torch

            return torch.device("cpu")  # the stored device is ignored: bcu chooses the device
        return self.tensor(call)

    def _storage(self, storage: StorageRef) -> torch.Tensor:
        import torch

        if storage.key not in self._storages:
            data = self._archive.read(f"{self._folder}/{storage.key}")
            if storage.kind not in KIND_DTYPES or len(data) != storage.nbytes:
                why = f"storage {storage.key} of {len(data):,} bytes does not fit its tensor"
                raise damaged(self._archive.path, why)
            dtype = getattr(torch, KIND_DTYPES[storage.kind])
            flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self._storages[storage.key] = flat
        return self._storages[storage.key]
