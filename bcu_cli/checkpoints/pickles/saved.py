"""Pickles of ``torch.save``: inspected first, and read with a restricted unpickler only if they are safe."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints.archive import MAX_PICKLE_BYTES, TorchArchive, damaged
from bcu_cli.checkpoints.pickles import saved_archive
from bcu_cli.checkpoints.pickles.inert import KIND_DTYPES, open_inertly, size_fault
from bcu_cli.checkpoints.pickles.inspection import OBJECT_PREFIX, BrokenPickleError, inspect_pickle
from bcu_cli.checkpoints.pickles.machine import follow
from bcu_cli.checkpoints.pickles.weights import Weights, find_weights
from bcu_cli.checkpoints.rules import RESAVE
from bcu_cli.checkpoints.sniff import Kind
from bcu_cli.errors import CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from bcu_cli.checkpoints.checkpoint import Finding
    from bcu_cli.checkpoints.pickles.inert import Contents, StorageRef

_LEGACY_STREAMS = 5  # magic number, protocol, system, object, storage keys; then the data
_LEGACY_OBJECT = 3
_COUNT_BYTES = 8  # size of the element count before the data of each storage
_OTHER_LIBRARIES = re.compile(r"\b(sklearn|joblib|xgboost|lightgbm)\.")


def find_faults(path: Path, kind: Kind) -> list[Finding]:
    """The findings about all pickles of a file; none of them is opened.

    Raises:
        CheckpointError: The file is damaged.
    """
    if kind is Kind.ZIP_PICKLE:
        with TorchArchive(path) as archive:
            return saved_archive.find_faults(archive)
    findings: list[Finding] = []
    position = 0
    for data in _streams(path, kind):
        try:
            findings += inspect_pickle(data, position=position)
        except BrokenPickleError as error:
            raise damaged(path, f"its pickle cannot be followed ({error})") from error
        position += len(data)
    return findings


def _streams(path: Path, kind: Kind) -> list[bytes]:
    """The pickles at the start of a file that is no zip; a broken one includes all bytes after it."""
    with path.open("rb") as file:
        head = file.read(MAX_PICKLE_BYTES + 1)  # one byte too many, so that the inspection refuses it
    if kind is Kind.PLAIN_PICKLE:
        return [head]
    streams: list[bytes] = []
    for _ in range(_LEGACY_STREAMS):
        try:
            end = follow(head).end
        except BrokenPickleError:
            return [*streams, head]  # the inspection reports the error
        streams.append(head[:end])
        head = head[end:]
    return streams


def refuse_if_unsafe(path: Path, findings: list[Finding]) -> None:
    """Refuse a file with unsafe findings.

    Raises:
        UnsafeFileError: A finding is unsafe.
    """
    unsafe = [finding for finding in findings if finding.severity == "unsafe"]
    if not unsafe:
        return
    texts = [finding.message for finding in unsafe]
    if any(finding.rule != "pickle-object" for finding in unsafe):
        first = [finding.message for finding in unsafe if finding.rule != "pickle-object"]
        message = f"{path} {_join(first)} (a pickle can run any program); it was not opened"
        hint = "do not open it with anything else; report it to where you found it"
        raise UnsafeFileError(message, hint, rule=unsafe[0].rule)
    names = [text.removeprefix(OBJECT_PREFIX) for text in texts]
    if any(name.startswith("torch.nn.modules.") for name in names):
        classes = [name for name in names if not name.startswith("torch.nn.")] or names
        message = f"{path} holds a whole pickled object, not weights ({_join(classes)}); it was not opened"
    else:
        message = f"{path} {OBJECT_PREFIX}{_join(names)}, which weights do not need; it was not opened"
    raise UnsafeFileError(message, RESAVE, rule="pickle-object")


def refuse_other_library(path: Path, findings: list[Finding]) -> None:
    """Refuse a pickle with the model of another library, such as scikit-learn.

    Raises:
        CheckpointError: A finding names an object of such a library.
    """
    if any(_OTHER_LIBRARIES.search(finding.message) for finding in findings):
        message = f"{path} is a pickle of scikit-learn or a similar library, not an image classifier of torch"
        hint = "bcu reads safetensors, weights of torch.save, and TorchScript"
        raise CheckpointError(message, hint, rule="unsupported-format")


def load(path: Path, kind: Kind, key: str | None = None) -> Weights:
    """Read the weights of a file whose pickles have passed the inspection.

    Args:
        path: The file.
        kind: The kind of pickle.
        key: Path of the table to read, as in :func:`bcu_cli.checkpoints.pickles.weights.find_weights`.

    Raises:
        CheckpointError: The file is damaged, holds fewer bytes than it claims, or holds no weights.
    """
    if kind is Kind.PLAIN_PICKLE:
        message = f"{path} is a plain pickle, not a file of torch.save"
        hint = "save the weights with torch.save(model.state_dict(), ...)"
        raise CheckpointError(message, hint, rule="unsupported-format")
    if kind is Kind.ZIP_PICKLE:
        with TorchArchive(path) as archive:
            return find_weights(path, _value_in_archive(archive), key)
    streams = _streams(path, kind)
    positions = _storage_offsets(path, streams)
    with path.open("rb") as file:

        def memory(of: StorageRef) -> torch.UntypedStorage:
            file.seek(positions[of.key])
            return saved_archive.as_storage(bytearray(file.read(of.nbytes)))

        value = _values(path, streams[_LEGACY_OBJECT], memory)
    return find_weights(path, value, key)


def _value_in_archive(archive: TorchArchive) -> Any:
    """The value of an archive's pickle, after a check that the archive has exactly the storages it needs."""
    import torch

    data = archive.read("data.pkl")
    saved_archive.check_storages(archive, _contents(archive.path, data).storages)
    is_big = "byteorder" in archive.names and archive.read("byteorder") == b"big"

    def memory(of: StorageRef) -> torch.UntypedStorage:
        made = saved_archive.as_storage(bytearray(archive.read(saved_archive.STORAGE + of.key)))
        if is_big:
            made.byteswap(getattr(torch, KIND_DTYPES[of.kind]))  # type: ignore[no-untyped-call]
        return made

    return _values(archive.path, data, memory)


def _values(path: Path, data: bytes, memory: Callable[[StorageRef], torch.UntypedStorage]) -> Any:
    from bcu_cli.checkpoints.pickles.values import open_values

    try:
        return open_values(data, memory)
    except CheckpointError:
        raise
    except Exception as error:  # broken bytes can raise any error in the unpickler
        raise damaged(path, f"its pickle cannot be followed ({_first_line(error)})") from error


def _storage_offsets(path: Path, streams: list[bytes]) -> dict[str, int]:
    """The offset of each storage's data in a legacy file, in bytes."""
    contents = _contents(path, streams[_LEGACY_OBJECT])
    keys = _contents(path, streams[-1]).value
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(contents.storages):
        raise damaged(path, "its list of storages is not that of its tensors")
    position = sum(map(len, streams))
    positions: dict[str, int] = {}
    with path.open("rb") as file:
        for storage in (contents.storages[str(key)] for key in keys):
            file.seek(position)
            if file.read(_COUNT_BYTES) != storage.numel.to_bytes(_COUNT_BYTES, "little"):
                raise damaged(path, f"its storage {storage.key} is not of the size that it claims")
            positions[storage.key] = position + _COUNT_BYTES
            position += _COUNT_BYTES + storage.nbytes
    if position != path.stat().st_size:
        raise damaged(path, "it does not end with its last storage")
    return positions


def _contents(path: Path, data: bytes) -> Contents:
    try:
        contents = open_inertly(data)
        fault = size_fault(contents, path.stat().st_size)
    except Exception as error:  # broken bytes can raise any error in the unpickler
        raise damaged(path, f"its pickle cannot be followed ({_first_line(error)})") from error
    if fault:
        raise damaged(path, fault, "impossible-size")
    return contents


def _join(texts: list[str], most: int = 3) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
