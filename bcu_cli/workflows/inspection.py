"""Inspection of one model file: whether it is safe to open, its content, and its architecture.

No code of a file is run, and no file is called safe that was not read.
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
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bcu_cli.checkpoints import Description, Format
    from bcu_cli.models import Architecture

UNKNOWN, OWN_GRAPH, MISMATCH = "architecture-unknown", "architecture-own-graph", "architecture-mismatch"
"""Rules: the architecture is unknown, the file has its own graph, or the tensors do not fit ``--arch``."""
UNREAD_GRAPH = "graph-unread"
_WITH_GRAPH = ("torchscript", "torch.export", "onnx")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Reason why a file could not be read, or is no classifier that bcu supports.

    Attributes:
        rule: Stable identifier.
        message: The reason, in one line.
        hint: The remedy, in one line.
    """

    rule: str
    message: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Result of inspecting one file.

    Attributes:
        path: The file.
        findings: Facts that the user should know.
        description: Kind, format, size and hash; None if the kind could not be determined.
        content: Names, shapes and types of the tensors, and the entries beside them; None if the file was
            not opened.
        not_finite: Number of NaN and infinite values by tensor, without zeros; None if the values were not
            read.
        architecture: Architecture of the network; None if it is unknown.
        problem: Reason why the inspection is incomplete; None if it is complete.
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
        """Whether the file is safe to open; None if it was not read."""
        if any(finding.severity == "unsafe" for finding in self.findings):
            return False
        return None if self.content is None else True

    def document(self) -> dict[str, Any]:
        """Return the inspection as plain values for JSON."""
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
    """Files found at the given paths.

    Attributes:
        files: All files without duplicates, not yet opened.
        beside: Files in folders whose suffix is no model's; they are passed over if they hold no model.
        folders: The given folders, and the files in each.
        problems: Folders that could not be listed, and hub models that could not be fetched.
    """

    files: list[Path] = field(default_factory=list)
    beside: set[Path] = field(default_factory=set)
    folders: list[tuple[Path, list[Path]]] = field(default_factory=list)
    problems: list[tuple[Path, Problem]] = field(default_factory=list)


def find_files(paths: Sequence[Path]) -> Found:
    """Find the files among the paths and, at any depth, in the folders among them.

    Only the indexes of sharded models are opened; other files are read in a separate process. In folders,
    symbolic links to files are followed; links to folders and the folder ``.git`` are not. All files of a hub
    model that may hold weights are fetched.
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
    """Return the problem of a folder that holds only images, texts and empty files."""
    hint = "name a folder with model files (.safetensors, .pt, .pth) in it"
    return Problem(rule="no-model-found", message=f"{folder} holds no model file", hint=hint)


def inspect_file(
    path: Path, arch: str | None = None, before_reading: Callable[[], None] = lambda: None
) -> Inspection:
    """Inspect one file.

    Args:
        path: The file.
        arch: The user's ``--arch``.
        before_reading: Called before torch reads weights; safetensors files are read without torch.

    Raises:
        MemoryError: There is too little memory for the inspection.
    """
    from bcu_cli.checkpoints import inspect_only

    try:
        description = inspect_only(path)
    except UnsafeFileError as error:  # its opcodes are hidden, so there is no description
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
    """Raise MemoryError if a reader called a file damaged only because memory ran out."""
    if limits.is_lack_of_memory(error):
        raise MemoryError from error


def _open(description: Description, arch: str | None, before_reading: Callable[[], None]) -> Inspection:
    """Inspect the content of a file that is safe to open."""
    from bcu_cli.checkpoints import count_not_finite, outline, read
    from bcu_cli.models import identify
    from bcu_cli.models.architectures.index import counted

    content: Checkpoint | Outline
    not_finite: dict[str, int] | None
    if description.kind == Kind.SAFETENSORS:  # read without torch
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
        elif triggers.KEY not in content.metadata:  # trigger files of bcu attack hold no network
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
    """Yield the files of a folder, then those of its subfolders, sorted by name, at any depth."""
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
    """Whether an entry is a folder; None for a link to a folder."""
    try:
        if not entry.is_dir():
            return False
        return None if entry.is_symlink() else True
    except OSError:  # for example a link to itself, which its inspection reports
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # for example a name that is too long, which its inspection reports
        return False


def _parts(file: Path) -> Iterable[Path]:
    """List the files that an index names; none if it is no index or is invalid."""
    if not file.name.endswith(INDEX_SUFFIX):
        return ()
    try:
        return read_index(file)
    except Exception:  # the inspection of the index reports the error
        return ()


def _finding(error: UnsafeFileError) -> Finding:
    return Finding(rule=error.rule, message=error.message, severity="unsafe")


def _unread_graph(content: Any) -> Problem | None:
    """Return the problem of a file of unknown architecture whose own code or graph bcu cannot read.

    Args:
        content: The checkpoint.
    """
    if content.format.value not in _WITH_GRAPH:
        return None
    from bcu_cli.models.embedded.opening import open_embedded

    try:
        open_embedded(content)
    except (ArchitectureError, CheckpointError) as error:
        return _problem(error, UNREAD_GRAPH)
    return None


def _note(error: ArchitectureError, format: Format) -> Finding:  # noqa: A002
    """Return the note on a file of unknown architecture, which is no fault of the file."""
    if format.value in _WITH_GRAPH:
        return Finding(rule=OWN_GRAPH, message=f"it runs by its own graph: {error.message}", severity="note")
    return Finding(rule=UNKNOWN, message=f"{error.message}; {error.hint}", severity="note")


def _problem(error: CheckpointError | ArchitectureError, rule: str) -> Problem:
    return Problem(rule=rule, message=error.message, hint=error.hint)


def _not_finite(checkpoint: Checkpoint) -> dict[str, int]:
    from bcu_cli.models.architectures.fitting import number_not_finite

    counts = {name: number_not_finite(tensor) for name, tensor in checkpoint.tensors.items()}
    return {name: count for name, count in counts.items() if count}


def _broken(path: Path, not_finite: dict[str, int]) -> Problem:
    name, count = next(iter(not_finite.items()))
    more = f", and {number_of(len(not_finite) - 1, 'more tensor')}" if len(not_finite) > 1 else ""
    return Problem(
        rule="not-finite",
        message=f"{path} has NaN or Inf in {name} ({number_of(count, 'value')}){more}",
        hint="the file is damaged or its training failed; get another copy",
    )


def _as_json(value: Any) -> Any:
    """Convert an entry beside the weights for JSON; infinities and tensors become texts."""
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
    """Return number and types of the tensors, and the entries beside them."""
    floating = [name for name, dtype in content.dtypes.items() if "float" in dtype]
    document: dict[str, Any] = {
        "tensors": len(content.shapes),
        "parameters": sum(math.prod(content.shapes[name]) for name in floating),
        "dtypes": dict(Counter(content.dtypes.values())),
        "prefix": content.prefix,
        "metadata": content.metadata,
    }
    if not isinstance(content, Checkpoint):  # a safetensors file holds no other entries
        return document | {"nesting": [], "beside": {}, "left_out": [], "others": []}
    return document | {
        "nesting": list(content.nesting),
        "beside": _as_json(content.extra_entries),
        "left_out": list(content.left_out),
        "others": list(content.others),
    }
