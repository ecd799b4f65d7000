"""Atomic writing of model files: a file replaces its target only once it is complete."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from bcu_cli.checkpoints import safetensors_file
from bcu_cli.checkpoints.pickles.weights import METADATA_KEY, OWN_METADATA_KEY
from bcu_cli.checkpoints.torchscript import script_file
from bcu_cli.errors import CheckpointError, OutputError

from .checkpoint import Checkpoint, Format, Omission, Placeholder
from .unfinished import Unfinished, remove_unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import torch

Check: TypeAlias = "Callable[[Path], object]"
"""Checks a complete file before it replaces the target; raises an error to prevent that."""

_CHUNK_BYTES = 2**20
_HINTS = {
    errno.ENOSPC: "free some space on the disk, or write to another one",
    errno.EFBIG: "files may not grow as large there; raise the limit (ulimit -f), or write elsewhere",
    errno.EDQUOT: "your quota is used up; free some space or write elsewhere",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "the disk is mounted read-only; write to another one",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "name a file in that folder",
    errno.ENAMETOOLONG: "choose a shorter file name",
}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        CheckpointError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise CheckpointError(message, "check the path", rule="file-missing") from error
    return digest.hexdigest()


@contextmanager
def atomic_write(path: Path, *, check: Check | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing bytes, which replaces ``path`` if the block ends without an error.

    After an error, the new file is removed and ``path`` is unchanged. Unfinished files of killed runs in the
    folder are removed too.

    Args:
        path: The file to write.
        check: Called with a path under which the complete file can be read, before it replaces ``path``. If
            it raises an error, ``path`` is unchanged.

    Raises:
        OutputError: There is no space, no permission or no such folder, or ``path`` is a folder.
    """
    target = Path(os.path.realpath(path))  # replaces the file that a link points to, not the link
    try:
        _refuse_special(target)
        remove_unfinished(target.parent)
        with Unfinished(target.parent) as unfinished:
            yield unfinished.file
            if check:
                check(unfinished.readable_path())
            unfinished.move_to(target)
    except OSError as error:
        raise _cannot_write(path, error) from error


def check_writable(path: Path, *, inputs: Iterable[Path] = ()) -> None:
    """Check before long work that ``path`` can be written and is none of the ``inputs``.

    Args:
        path: The file to write.
        inputs: Files and folders that are read. A folder stands for all files below it, and links are
            followed.

    Raises:
        OutputError: ``path`` is an input, a folder or a device, or its folder is missing or not writable.
    """
    path = Path(path)
    try:
        _refuse_special(path)
        there = path.stat() if path.exists() else None
    except OSError as error:
        raise _cannot_write(path, error) from error
    for source in map(Path, inputs if there else ()):
        if there and (read := _find_input(source, there)):
            message = f"{path} is the input" if path == read else f"{path} is the input {read} itself"
            hint = "choose another file for the output: bcu never overwrites what it reads"
            raise OutputError(message, hint)
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {folder}", _HINTS[errno.ENOENT])
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: no permission in {folder}", _HINTS[errno.EACCES])


def _cannot_write(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    hint = _HINTS.get(error.errno or 0, "write to another place")
    return OutputError(f"{path} cannot be written: {reason[:1].lower()}{reason[1:]}", hint)


def _find_input(source: Path, wanted: os.stat_result) -> Path | None:
    """The path of the file ``wanted`` if it is ``source`` or lies below it; else None."""
    if not source.is_dir():
        return source if _is_same_file(source, wanted) else None
    seen = set[str]()
    for folder, folders, names in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a circular link
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if _is_same_file(Path(folder, name), wanted):
                return Path(folder, name)
    return None


def _is_same_file(path: Path, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), wanted)
    except OSError:  # missing, or a broken link
        return False


def write(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    like: Checkpoint | None = None,
    format: Format,  # noqa: A002 - the word that users and the other modules know it by
    metadata: Mapping[str, str] | None = None,
    check: Check | None = None,
) -> str:
    """Write tensors with exactly the given names, order, dtypes and shapes.

    Equal tensors give equal bytes. With ``like``, names get its prefix back, and its metadata are kept except
    for keys in ``metadata``. A pickle also gets its nesting and the entries of ``like.tables`` back; a bare
    state dict stays one, without metadata. Entries in ``like.omitted`` are not written. A pickle without
    ``like`` is ``{"state_dict": ..., "metadata": ...}``.

    Args:
        path: The file to write.
        tensors: The tensors, by their names without ``like.prefix``.
        like: The file whose structure is kept; None for a new structure.
        format: The format to write: safetensors or pickle.
        metadata: Texts to store with the weights.
        check: Called with the complete file before it replaces ``path``, as in :func:`atomic_write`.

    Returns:
        The SHA-256 of the file, in hexadecimal.

    Raises:
        OutputError: The file cannot be written, or the format does not support a tensor's dtype.
        ValueError: ``format`` is one that this function does not write.
    """
    if format in {Format.TORCHSCRIPT, Format.EXPORTED, Format.ONNX}:
        raise ValueError(f"write does not write {format}")
    prefix = like.prefix if like else ""
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    merged = {**(like.metadata if like else {}), **(metadata or {})}
    if format is Format.SAFETENSORS:
        return _write_file(path, lambda file: safetensors_file.dump(file, named, merged), check)
    return _write_file(path, lambda file: _dump_pickle(file, named, like, merged), check)


def write_torchscript(
    path: Path, tensors: Mapping[str, torch.Tensor], *, like: Checkpoint, check: Check | None = None
) -> str:
    """Write a copy of a TorchScript archive with new values in its tensors.

    Code and all other members are kept; see :func:`bcu_cli.checkpoints.torchscript.script_file.dump`.

    Args:
        path: The new file.
        tensors: All parameters and buffers, by name.
        like: The archive to copy, which must not have changed since it was read.
        check: Called with the complete file before it replaces ``path``, as in :func:`atomic_write`.

    Returns:
        The SHA-256 of the file, in hexadecimal.

    Raises:
        CheckpointError: The archive is damaged.
        OutputError: The file cannot be written, a tensor is missing, or the archive has changed.
    """
    if sha256_of(like.path) != like.sha256:
        raise OutputError(f"{like.path} has changed since it was read", "run the command again")
    return _write_file(path, lambda file: script_file.dump(file, like.path, tensors), check)


def write_bytes(path: Path, data: bytes, *, check: Check | None = None) -> str:
    """Write a file atomically, and return its SHA-256 in hexadecimal.

    Args:
        path: The file to write.
        data: Content of the file.
        check: Called with the complete file before it replaces ``path``, as in :func:`atomic_write`.

    Raises:
        OutputError: The file cannot be written.
    """
    return _write_file(path, lambda file: file.write(data), check)


def _write_file(path: Path, dump: Callable[[BinaryIO], object], check: Check | None) -> str:
    """Write to memory first, since torch's writer hides the reason when the disk is full."""
    buffer = io.BytesIO()
    try:
        dump(buffer)
    except safetensors_file.NoSuchDtypeError as error:
        raise OutputError(f"{path} cannot be written: {error}", "write a pickle: --format pickle") from error
    with atomic_write(path, check=check) as file:
        file.write(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _dump_pickle(
    file: BinaryIO, named: Mapping[str, torch.Tensor], like: Checkpoint | None, metadata: Mapping[str, str]
) -> None:
    import torch

    if like is None or like.format is not Format.PICKLE or not like.tables:
        weights = OrderedDict((name, _contiguous_copy(tensor)) for name, tensor in named.items())
        beside = {METADATA_KEY: dict(metadata)} if metadata else {}
        torch.save({"state_dict": weights, **beside}, file)
        return
    value: Any = None
    for depth in range(len(like.tables) - 1, -1, -1):
        places = named if depth == len(like.nesting) else {like.nesting[depth]: value}
        value = _filled(like.tables[depth], places, metadata)
    if like.nesting and metadata and Placeholder.METADATA not in _values(like.tables[0]):
        taken = [*like.tables[0], *(each.name for each in like.omitted)]
        value[OWN_METADATA_KEY if METADATA_KEY in taken else METADATA_KEY] = dict(metadata)
    torch.save(value, file)


def _filled(table: dict[Any, Any], places: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[Any, Any]:
    """A table of the original file with new values for its placeholders; additional entries come last."""
    made = type(table)()
    for key, value in table.items():
        if value is Placeholder.METADATA:
            made[key] = dict(metadata)
        elif value is not Placeholder.WEIGHTS:
            made[key] = _copy(value)
        elif key in places:
            made[key] = _copy(places[key])
    made.update((key, _copy(value)) for key, value in places.items() if key not in made)
    return made


def _values(table: dict[Any, Any]) -> list[Placeholder]:
    return [value for value in table.values() if isinstance(value, Placeholder)]


def _copy(value: Any) -> Any:
    """A copy of a value in which no tensors share memory."""
    import torch

    if isinstance(value, torch.Tensor):
        return _contiguous_copy(value)
    if isinstance(value, dict):
        made = type(value)()
        for key, item in value.items():  # Counter.update would add counts
            made[key] = _copy(item)
        return made
    if type(value) in (list, tuple):
        return type(value)(map(_copy, value))
    return _SortedSet(value) if type(value) is set else value


class _SortedSet:
    """A set that is pickled in a fixed order; the order of Python's sets changes from run to run."""

    def __init__(self, items: set[Any]) -> None:
        self._items = sorted(items, key=lambda item: (type(item).__name__, repr(item)))

    def __reduce__(self) -> tuple[type[set[Any]], tuple[list[Any]]]:
        return set, (self._items,)


def lost_in(like: Checkpoint, format: Format) -> tuple[Omission, ...]:  # noqa: A002
    """The entries of a file that are lost when it is written in another format.

    Args:
        like: The file as read.
        format: The format to write.
    """
    if format is like.format:
        return ()
    names = list(like.extra_entries)
    if format is Format.TORCHSCRIPT and like.metadata:
        names.append(METADATA_KEY)
    return tuple(Omission(name=name, why=f"{format.value} has no place for it") for name in names)


def _contiguous_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of a tensor on the CPU; torch.save would write the whole storage of a view."""
    import torch

    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _refuse_special(path: Path) -> None:
    """Refuse a target that is a folder or a device, which renaming would replace."""
    if path.exists():
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
