"""TorchScript archives: their code and tensors read, and written with other numbers, without running any."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeGuard

from bcu_cli.errors import CheckpointError, OutputError, UnsafeFileError

from .archive import TorchArchive, damaged
from .bytecode import BYTECODE, UnreadableBytecodeError, operators_of
from .checkpoint import Finding
from .inert import KIND_DTYPES, RecordedCall, ScriptRecord, StorageRef, open_inertly, size_fault
from .operators import UnreadableCodeError, forbidden_operators, is_dangerous, list_operators
from .pickle_inspection import BrokenPickleError, inspect_pickle
from .script_code import ScriptClass, ScriptCode, declared, parse_all

if TYPE_CHECKING:
    import ast
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import torch

    from .checkpoint import Checkpoint

OPERATOR_RULE = "torchscript-operator"
_MAX_TENSORS = 100_000  # a module that stands in many places gives its tensors one name in each
_MAX_DEPTH = 64
_LITE_MEMBERS = (BYTECODE, "mobile_debug_handles.pkl")
_DATE = (1980, 1, 1, 0, 0, 0)  # the same tensors give the same bytes


@dataclass(frozen=True, eq=False)
class ScriptObject:
    """A module or enumeration member of an archive.

    Args:
        of: Its class.
        attributes: Its attributes by name; for a member of an enumeration, ``value``.
    """

    of: ScriptClass
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Script:
    """A TorchScript archive, read and not run.

    Args:
        path: The file.
        code: What its code declares.
        root: The network's outermost module.
        constants: The tensors and others that the code calls ``CONSTANTS.c0`` and so on.
    """

    path: Path
    code: ScriptCode
    root: ScriptObject
    constants: tuple[Any, ...]


def find_faults(path: Path) -> tuple[list[Finding], tuple[str, ...]]:
    """Look at an archive: what its pickles ask for, and which operators its code names.

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
    """The members of an archive that are not written back: those of torch's lite interpreter.

    Raises:
        CheckpointError: The archive is damaged.
    """
    with TorchArchive(path) as archive:
        return tuple(name for name in archive.names if name in _LITE_MEMBERS)


def load(path: Path) -> dict[str, torch.Tensor]:
    """Read the parameters and buffers under the names that the module's ``state_dict`` would give them.

    Nothing of the archive is run. Look at it first (:func:`find_faults`).

    Raises:
        CheckpointError: The archive is damaged, or its weights are constants in its code.
    """
    with TorchArchive(path) as archive:
        classes = _code(archive).classes
        root = _open_pickle(archive, "data.pkl")
        reader = _ValueReader(archive, classes)
        tensors: dict[str, torch.Tensor] = {}
        for name, recipe in _named_tensors(path, root, classes):
            tensors[name] = reader.tensor(recipe).clone()
            if len(tensors) > _MAX_TENSORS:
                raise damaged(path, f"it names more than {_MAX_TENSORS:,} tensors")
    if not tensors:
        hint = "save it before torch.jit.freeze or torch.jit.optimize_for_inference is applied"
        raise CheckpointError(
            f"{path} holds no named weights: its TorchScript code is frozen", hint, rule="no-weights"
        )
    return tensors


def open_script(checkpoint: Checkpoint) -> Script:
    """Read the code, objects and constants of a TorchScript archive whose operators are all allowed.

    Nothing is run, here or by torch; :class:`bcu_cli.models.script.ScriptNetwork` evaluates the code.

    Raises:
        UnsafeFileError: The code or a pickle asks for more than tensor operations.
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
    """Write an archive again with other numbers in its tensors.

    All members keep their bytes, save the storages of the named tensors: each keeps its type, shape and
    stride, and tensors that shared memory still share it. What only torch's lite interpreter reads is left
    out. The same tensors give the same bytes.

    Args:
        file: Where to write.
        path: The archive.
        tensors: The new numbers of all its parameters and buffers, by their names in ``state_dict``.

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
    """The operators that the lite interpreter would call; None where that cannot be followed."""
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
    """What a pickle of an archive holds, as recipes and records whose sizes are possible."""
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
    except Exception as error:  # the unpickler raises whatever the broken bytes led to
        raise damaged(path, f"its {name} cannot be followed") from error
    if fault:
        raise damaged(path, fault, "impossible-size")
    return contents.value


def _named_tensors(
    path: Path, module: Any, classes: dict[str, ScriptClass], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, RecordedCall]]:
    """The tensors of a module in the order of ``state_dict``: its parameters, its buffers, its parts."""
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
    """Makes values of what a pickle of an archive holds: tensors, modules, lists and so on.

    Args:
        archive: The archive.
        classes: Of its code.
        folder: Where the storages of the pickle's tensors are.
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

    def tensor(self, recipe: RecordedCall) -> torch.Tensor:
        """The tensor that a recipe describes; its sizes were checked with :func:`size_fault`.

        Tensors of one storage share their memory, and the same place in it gives the same tensor.
        """
        if recipe.name != "torch._utils._rebuild_tensor_v2":
            raise damaged(self._archive.path, f"{recipe.name} makes no tensor")
        storage, offset, shape, stride = recipe.args[:4]
        key = (storage.key, offset, shape, stride)
        if key not in self._tensors:
            self._tensors[key] = self._storage(storage).as_strided(shape, stride, offset)
        return self._tensors[key]

    def value(self, value: Any, depth: int = 0) -> Any:
        """The value that a part of the pickle stands for."""
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
            return self._made(value, depth)
        raise damaged(self._archive.path, f"it holds a {type(value).__name__}, which no network needs")

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put other numbers into the named tensors of the archive's network."""
        path = self._archive.path
        for name, recipe in _named_tensors(path, _open_pickle(self._archive, "data.pkl"), self._classes):
            own = self.tensor(recipe)
            if name not in tensors or tensors[name].numel() != own.numel():
                raise OutputError(
                    f"the network has no tensor {name} as {path} has it", "report this: it is a bug"
                )
            own.copy_(tensors[name].detach().reshape(own.shape))

    def storages(self) -> Iterator[tuple[str, bytes]]:
        """The storages that were read, as they are now."""
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

    def _made(self, recipe: RecordedCall, depth: int) -> Any:
        """The value of a call that the pickle asks for: a typed list, a device, a tensor."""
        if recipe.name.startswith("torch.jit._pickle.") and recipe.args:
            return self.value(recipe.args[0], depth + 1)
        if recipe.name == "torch.device":
            import torch

            return torch.device("cpu")  # whatever device it was: the network is where bcu puts it
        return self.tensor(recipe)

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
