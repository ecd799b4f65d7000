"""Pickles of ``torch.save``: looked at first, then opened by torch's weights-only loader or not at all."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from bcu_cli.errors import CheckpointError, UnsafeFileError

from .archive import MAX_PICKLE_BYTES, TorchArchive, damaged
from .inert import open_inertly, size_fault
from .opcodes import OBJECT_WORDS, BrokenPickleError, globals_of, look
from .sniff import Kind
from .weights import Weights, find_weights

if TYPE_CHECKING:
    from pathlib import Path

    from .checkpoint import Finding

_PROTOCOL = 2  # of what torch.save writes, if not told otherwise
_LEGACY_STREAMS = 5  # magic number, protocol, system, object, storage keys; then the data
_RESAVE = "whoever trusts it can open it and run torch.save(model.state_dict(), ...); bcu reads that"
_OTHER_LIBRARIES = ("sklearn.", "joblib.", "xgboost.", "lightgbm.")


def pickles_in(path: Path, kind: Kind) -> list[bytes]:
    """Every pickle in the file; the last one with all that follows, if it is broken.

    Raises:
        CheckpointError: The file is damaged.
    """
    if kind is Kind.ZIP_PICKLE:
        with TorchArchive(path) as archive:
            return [archive.read(name) for name in archive.names if name.endswith(".pkl")]
    with path.open("rb") as file:
        head = file.read(MAX_PICKLE_BYTES)
    if kind is Kind.PLAIN_PICKLE:
        return [head]
    streams: list[bytes] = []
    for _ in range(_LEGACY_STREAMS):
        try:
            end = globals_of(head)[1]
        except BrokenPickleError:
            return [*streams, head]  # for the look to say what is wrong with it
        streams.append(head[:end])
        head = head[end:]
    return streams


def find_faults(path: Path, kind: Kind) -> list[Finding]:
    """What the static look finds in all pickles of the file; nothing is opened.

    Raises:
        CheckpointError: The file is damaged.
    """
    findings: list[Finding] = []
    position = 0
    for data in pickles_in(path, kind):
        try:
            findings += look(data, position=position)
        except BrokenPickleError as error:
            raise damaged(path, f"its pickle cannot be followed ({error})") from error
        position += len(data) if kind is Kind.LEGACY_PICKLE else 0
    return findings


def refuse_if_unsafe(path: Path, findings: list[Finding]) -> None:
    """Raise what the findings call for.

    Raises:
        UnsafeFileError: The file asks for what weights do not need.
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
    names = [text.removeprefix(OBJECT_WORDS) for text in texts]
    if any(name.startswith("torch.nn.modules.") for name in names):
        classes = [name for name in names if not name.startswith("torch.nn.")] or names
        message = f"{path} holds a whole pickled object, not weights ({_join(classes)}); it was not opened"
    else:
        message = f"{path} {OBJECT_WORDS}{_join(names)}, which weights do not need; it was not opened"
    raise UnsafeFileError(message, _RESAVE, rule="pickle-object")


def refuse_other_library(path: Path, findings: list[Finding]) -> None:
    """Raise if the pickled objects, none of them dangerous in itself, are those of another kind of model.

    Raises:
        CheckpointError: It is a model of scikit-learn or the like.
    """
    if any(finding.message.removeprefix(OBJECT_WORDS).startswith(_OTHER_LIBRARIES) for finding in findings):
        message = f"{path} is a pickle of scikit-learn or a similar library, not an image classifier of torch"
        hint = "bcu reads safetensors, weights of torch.save, and TorchScript"
        raise CheckpointError(message, hint, rule="unsupported-format")


def load(path: Path, kind: Kind) -> Weights:
    """Read the weights of a file whose pickles were looked at and found harmless.

    Raises:
        CheckpointError: The file is damaged, claims more than it has, or holds no weights.
    """
    import torch

    if kind is Kind.PLAIN_PICKLE:
        message = f"{path} is a plain pickle, not a file of torch.save"
        hint = "save the weights with torch.save(model.state_dict(), ...)"
        raise CheckpointError(message, hint, rule="unsupported-format")
    _check_sizes(path, kind)
    try:
        with warnings.catch_warnings(), path.open("rb") as file:  # by its name torch would judge a path
            warnings.simplefilter("ignore")  # of torch about its own old formats; nothing a user could act on
            value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises whatever the broken bytes led to
        if protocol := _protocol(pickles_in(path, kind)[-1]):
            message = f"{path} is pickled with protocol {protocol}, which torch's safe loader does not read"
            hint = "save it again with torch.save as it is, without pickle_protocol"
            raise CheckpointError(message, hint, rule="unsupported-weights") from error
        raise damaged(path, _reason(error)) from error
    return find_weights(path, value)


def _check_sizes(path: Path, kind: Kind) -> None:
    size = path.stat().st_size
    for data in pickles_in(path, kind):
        try:
            contents = open_inertly(data)
            fault = size_fault(contents, size)
        except Exception as error:  # as above
            raise damaged(path, f"its pickle cannot be followed ({_first_line(error)})") from error
        if fault:
            raise damaged(path, fault, "impossible-size")


def _join(texts: list[str], most: int = 3) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _protocol(data: bytes) -> int | None:
    """The protocol that a pickle is of, where it is none that torch writes."""
    return data[1] if data[:1] == b"\x80" and data[1] > _PROTOCOL else None


def _reason(error: Exception) -> str:
    """What torch's safe loader complains of, without its advice to load the file unsafely."""
    lines = str(error).strip().splitlines()
    return next(
        (line.strip()[:200] for line in lines if "WeightsUnpickler error" in line), _first_line(error)
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
