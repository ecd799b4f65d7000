"""What is known of a model file: is it safe to open, what does it hold, and why not if that cannot be said.

Nothing of a file is run, and nothing is called safe that was not read.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import limits, triggers
from bcu_cli.checkpoints import MODEL_SUFFIXES, WHOLE_BYTES, Checkpoint, Finding, Outline
from bcu_cli.checkpoints.hub import fetch_all, is_reference
from bcu_cli.checkpoints.shards import INDEX_SUFFIX, read_index
from bcu_cli.checkpoints.sniff import Kind
from bcu_cli.errors import ArchitectureError, CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bcu_cli.checkpoints import Description, Format
    from bcu_cli.models import Architecture

UNKNOWN, OWN_GRAPH, MISMATCH = "architecture-unknown", "architecture-own-graph", "architecture-mismatch"
"""Rules: the network is none of the known ones, runs by its own graph, or does not fit ``--arch``."""
UNREAD_GRAPH = "graph-unread"
_WITH_GRAPH = ("torchscript", "torch.export", "onnx")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a file could not be read, or is no classifier that bcu can work on.

    Attributes:
        rule: A stable id.
        message: What is wrong, in one line.
        hint: What to do about it.
    """

    rule: str
    message: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is known of one file.

    Attributes:
        path: The file.
        findings: What its user should know.
        description: What it is; None where that could not be told.
        content: Its tensors' names, shapes and types and what stands beside them; None where it was not
            opened.
        not_finite: How many values of each tensor are NaN or infinite, where there are any; None where the
            values were not read.
        architecture: The network that the tensors are of; None where it is not known.
        problem: Why not everything above is known; None where it is.
    """

    path: Path
    findings: tuple[Finding, ...] = ()
    description: Description | None = None
    content: Checkpoint | Outline | None = None
    not_finite: dict[str, int] | None = None
    architecture: Architecture | None = None
    problem: Problem | None = None

    @property
    def safe(self) -> bool | None:
        """Whether the file can be opened without harm; None where it was not read."""
        if any(finding.severity == "unsafe" for finding in self.findings):
            return False
        return None if self.content is None else True

    def document(self) -> dict[str, Any]:
        """All of it as plain values."""
        document: dict[str, Any] = {"path": str(self.path), "safe": self.safe}
        document["findings"] = [asdict(finding) for finding in self.findings]
        document["problem"] = self.problem and asdict(self.problem)
        if self.description is not None:
            document |= {
                "kind": self.description.kind,
                "format": self.description.format.value,
                "sha256": self.description.sha256,
                "bytes": self.description.size,
                "operators": list(self.description.operators),
                "parts": [str(part) for part in self.description.parts],
            }
        if self.content is not None:
            document |= _tensors(self.content) | {"not_finite": self.not_finite}
            document["architecture"] = self.architecture and asdict(self.architecture)
        return document


@dataclass(kw_only=True)
class Found:
    """The files that some paths lead to.

    Attributes:
        files: Every file, each once; none of them was opened yet.
        beside: Those that may be passed over: in folders, and not called like models.
        folders: The folders that were named, and the files in each.
        problems: Folders that could not be listed, and models of the hub that could not be fetched.
    """

    files: list[Path] = field(default_factory=list)
    beside: set[Path] = field(default_factory=set)
    folders: list[tuple[Path, list[Path]]] = field(default_factory=list)
    problems: list[tuple[Path, Problem]] = field(default_factory=list)


def find_files(paths: Sequence[Path]) -> Found:
    """The files among the paths and, at any depth, in the folders among them.

    No file is opened but the indexes of models in several files: whatever else reads them is to do that where
    a file can break nothing. In folders, symbolic links to files are followed and links to folders and the
    folder ``.git`` are not. Of a model of the hub all files that may hold models are fetched.
    """
    found = Found()
    for named in paths:
        try:
            path = fetch_all(named, sorted(MODEL_SUFFIXES)) if is_reference(named) else named
        except CheckpointError as error:
            found.problems.append((named, _problem(error, error.rule)))
            continue
        if not _is_folder(path):
            found.files.append(path)
            continue
        inside = list(_walk(path, found))
        found.folders.append((named, inside))
        found.files += inside
        found.beside.update(file for file in inside if file.suffix.lower() not in MODEL_SUFFIXES)
    found.beside -= set(paths)
    parts = {part for file in found.files for part in _parts(file)}
    found.files = [file for file in dict.fromkeys(found.files) if file not in parts]
    return found


def no_model_in(folder: Path) -> Problem:
    """The problem of a folder in which there is nothing but images, texts and empty files."""
    hint = "name a folder with model files (.safetensors, .pt, .pth) in it"
    return Problem(rule="no-model-found", message=f"{folder} holds no model file", hint=hint)


def inspect_file(
    path: Path, arch: str | None = None, before_reading: Callable[[], None] = lambda: None
) -> Inspection:
    """Find out what a file is.

    Args:
        path: The file.
        arch: The user's ``--arch``.
        before_reading: Called before weights are read with torch, as those of safetensors are not.

    Raises:
        MemoryError: There is too little memory to tell.
    """
    from bcu_cli.checkpoints import inspect_only

    try:
        description = inspect_only(path)
    except UnsafeFileError as error:  # it hides what it does, so that there is nothing to list
        return Inspection(path=path, findings=(_finding(error),), problem=None)
    except CheckpointError as error:
        _raise_lack_of_memory(error)
        return Inspection(path=path, problem=_problem(error, error.rule))
    if description.is_unsafe:
        return Inspection(path=path, description=description, findings=description.findings)
    try:
        return _open(description, arch, before_reading)
    except CheckpointError as error:
        _raise_lack_of_memory(error)
        problem = _problem(error, error.rule)
        return Inspection(path=path, description=description, findings=description.findings, problem=problem)


def _raise_lack_of_memory(error: CheckpointError) -> None:
    """Nothing is wrong with a file of which a reader says that it is damaged because no memory was left."""
    if limits.is_lack_of_memory(error):
        raise MemoryError from error


def _open(description: Description, arch: str | None, before_reading: Callable[[], None]) -> Inspection:
    """What is known of a file that is safe to open."""
    from bcu_cli.checkpoints import count_not_finite, outline, read
    from bcu_cli.models import identify
    from bcu_cli.models.index import counted

    content: Checkpoint | Outline
    not_finite: dict[str, int] | None
    if description.kind == Kind.SAFETENSORS:  # which needs no torch
        content = outline(description)
        not_finite = None if description.size > WHOLE_BYTES else count_not_finite(description.path)
    else:
        before_reading()
        content = read(description.path)
        not_finite = _not_finite(content)
    architecture, problem, notes = None, None, []
    try:
        architecture = identify(content, arch)
    except ArchitectureError as error:
        if arch is not None:
            problem = _problem(error, MISMATCH)
        elif triggers.KEY not in content.metadata:  # those of bcu attack hold no network to recognise
            problem = _unread_graph(content)
            notes += [] if problem else [_note(error, content.format)]
    if damaged := {name: count for name, count in not_finite.items() if counted(name)} if not_finite else {}:
        problem = _broken(description.path, damaged)
    return Inspection(
        path=description.path,
        description=content,
        findings=(*content.findings, *notes),
        content=content,
        not_finite=not_finite,
        architecture=architecture,
        problem=problem,
    )


def _walk(folder: Path, found: Found) -> Iterator[Path]:
    """The files in a folder and then those in its folders, by their names; however deep they lie."""
    waiting = [str(folder)]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                inside = sorted((entry.name, _is_own_folder(entry)) for entry in entries)
        except OSError as error:
            message = f"{place} cannot be listed: {error.strerror}"
            problem = Problem(rule="file-missing", message=message, hint="check its permissions")
            found.problems.append((Path(place), problem))
            continue
        yield from (Path(place, name) for name, is_folder in inside if is_folder is False)
        folders = [name for name, is_folder in inside if is_folder and name != ".git"]
        waiting += [os.path.join(place, name) for name in reversed(folders)]  # noqa: PTH118 - texts are fast


def _is_own_folder(entry: os.DirEntry[str]) -> bool | None:
    """Whether an entry is a folder, or something to look at; None for a link to a folder."""
    try:
        if not entry.is_dir():
            return False
        return None if entry.is_symlink() else True
    except OSError:  # a link to itself, say: looking at it says so
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long: inspecting it says so
        return False


def _parts(file: Path) -> Iterable[Path]:
    """The files that an index stands for; none where it is no index, or one that inspecting it will fault."""
    if not file.name.endswith(INDEX_SUFFIX):
        return ()
    try:
        return read_index(file)
    except Exception:  # whatever is wrong with it is said where it is inspected
        return ()


def _finding(error: UnsafeFileError) -> Finding:
    return Finding(rule=error.rule, message=error.message, severity="unsafe")


def _unread_graph(content: Any) -> Problem | None:
    """The problem of a file of unknown architecture whose code or graph bcu cannot read either.

    Args:
        content: The checkpoint.
    """
    if content.format.value not in _WITH_GRAPH:
        return None
    from bcu_cli.models.embedded import open_embedded

    try:
        open_embedded(content)
    except (ArchitectureError, CheckpointError) as error:
        return _problem(error, UNREAD_GRAPH)
    return None


def _note(error: ArchitectureError, format: Format) -> Finding:  # noqa: A002
    """The note on a file whose architecture is not known, which is no fault of the file."""
    if format.value in _WITH_GRAPH:
        return Finding(rule=OWN_GRAPH, message=f"it runs by its own graph: {error.message}", severity="note")
    return Finding(rule=UNKNOWN, message=f"{error.message}; {error.hint}", severity="note")


def _problem(error: CheckpointError | ArchitectureError, rule: str) -> Problem:
    return Problem(rule=rule, message=error.message, hint=error.hint)


def _not_finite(checkpoint: Checkpoint) -> dict[str, int]:
    from bcu_cli.models.fitting import number_not_finite

    counts = {name: number_not_finite(tensor) for name, tensor in checkpoint.tensors.items()}
    return {name: count for name, count in counts.items() if count}


def _broken(path: Path, not_finite: dict[str, int]) -> Problem:
    name, count = next(iter(not_finite.items()))
    more = f", and {len(not_finite) - 1} more tensors" if len(not_finite) > 1 else ""
    return Problem(
        rule="not-finite",
        message=f"{path} has NaN or Inf in {name} ({count} values){more}",
        hint="the file is damaged or its training failed; get another copy",
    )


def _as_json(value: Any) -> Any:
    """A value beside weights with what JSON does not have (a best loss of infinity, a tensor) as texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, set):
        return [_as_json(item) for item in sorted(value, key=repr)]
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if hasattr(value, "shape"):
        return f"tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return value if isinstance(value, str | int | float | None) else str(value)


def _tensors(content: Checkpoint | Outline) -> dict[str, Any]:
    """Number and types of the tensors, and what stands beside them."""
    floating = [name for name, dtype in content.dtypes.items() if "float" in dtype]
    document: dict[str, Any] = {
        "tensors": len(content.shapes),
        "parameters": sum(math.prod(content.shapes[name]) for name in floating),
        "dtypes": dict(Counter(content.dtypes.values())),
        "prefix": content.prefix,
        "metadata": content.metadata,
    }
    if not isinstance(content, Checkpoint):  # a safetensors file, which holds nothing else
        return document | {"nesting": [], "beside": {}, "left_out": [], "others": []}
    return document | {
        "nesting": list(content.nesting),
        "beside": _as_json(content.extra_entries),
        "left_out": list(content.left_out),
        "others": list(content.others),
    }
