"""Recognises the kind of a file by its first bytes and, for a zip, by its members; never by its name."""

from __future__ import annotations

import enum
import re
import stat
from typing import TYPE_CHECKING

from bcu_cli.checkpoints.exported.exported_file import MARKER
from bcu_cli.checkpoints.onnx.schema import looks_like_onnx
from bcu_cli.checkpoints.pickles.machine import BrokenPickleError, follow
from bcu_cli.errors import CheckpointError, UnsafeFileError

from . import shards
from .archive import MAX_PICKLE_BYTES, member_names
from .zip_directory import ends_as_zip

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bcu_cli.checkpoints.pickles.machine import GlobalUse


class Kind(enum.StrEnum):
    """The kinds of file that bcu reads; the values are texts for people."""

    SAFETENSORS = "safetensors"
    ZIP_PICKLE = "zip pickle of torch.save"
    LEGACY_PICKLE = "legacy pickle of torch.save"
    PLAIN_PICKLE = "plain pickle"
    TORCHSCRIPT = "TorchScript archive"
    EXPORTED = "torch.export archive"
    ONNX = "ONNX model"
    SHARDS = "index of a model in several files"


# The pickled magic number at the start of a legacy file; in any protocol, with or without a frame.
_LEGACY_MAGIC = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_HEAD_BYTES = 64 * 1024
_MOST_PICKLES = 100  # consecutive pickles that are followed
_PNG = rb"\x89PNG\r\n\x1a\n"  # no pickle, though its first bytes are valid opcodes
_HDF5 = b"\x89HDF\r\n\x1a\n"
_CONVERT = "convert it to safetensors with the tools of the library that wrote it"
_UNPACK = "unpack it and give bcu the model file inside"
_NO_MODEL = "give bcu the model file itself (.safetensors, .pt, .pth)"
_EXPORT = "save its weights with torch.save(model.state_dict(), ...) or as safetensors"

_FOREIGN = [  # other model and archive formats: (pattern at the start of the file, what it is, hint)
    (rb"GGUF", "a GGUF file (a language model's weights)", "bcu reads image classifiers"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or TensorFlow weights)", _CONVERT),
    (rb"\x93NUMPY", "a NumPy array file (.npy)", _CONVERT),
    (rb"....TFL3", "a TensorFlow Lite model", _CONVERT),
    (rb"\x1f\x8b", "a gzip archive", _UNPACK),
    (rb"BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed archive", _UNPACK),
    (rb"\x7fELF|MZ", "a program", _NO_MODEL),
]
_STATE = b"bcu: the state of an interrupted run, "
_NO_MODELS = [  # other files that often lie beside models, in the same form
    (_PNG + rb"|\xff\xd8\xff|GIF8|BM....\0\0\0\0|RIFF....WEBP|II\*\0|MM\0\*", "an image", _NO_MODEL),
    (rb"%PDF", "a PDF document", _NO_MODEL),
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, not the file it stands for",
        "run `git lfs pull` in its folder",
    ),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page", "the download failed or needs a login; fetch it again"),
]


def sniff(path: Path) -> Kind:
    """Recognise the kind of a file.

    Raises:
        CheckpointError: The file cannot be opened, is empty, or is of no kind that bcu reads. The message
            says what it is, and the rule is ``not-a-model`` for files that often lie beside models.
        UnsafeFileError: The file has two formats at once.
    """
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    _refuse_hidden_archives(path, head)
    if (kind := _signed_kind(head)) is not None:
        return kind
    _refuse_known(path, head, "unsupported-format", _FOREIGN)
    if not re.match(_PNG, head) and _is_old_pickle(path, head):
        return Kind.PLAIN_PICKLE
    _refuse_known(path, head, "not-a-model", _NO_MODELS)
    if shards.is_index(head) and _is_text(head):
        return Kind.SHARDS
    if _is_text(head):
        raise CheckpointError(f"{path} is a text file", _NO_MODEL, rule="not-a-model")
    message = f"{path} is no model file of a kind that bcu knows"
    raise CheckpointError(message, _NO_MODEL, rule="unsupported-format")


def _refuse_known(path: Path, head: bytes, rule: str, table: list[tuple[bytes, str, str]]) -> None:
    for pattern, what, hint in table:
        if re.match(pattern, head, re.DOTALL):
            raise CheckpointError(f"{path} is {what}", hint, rule=rule)


def _refuse_hidden_archives(path: Path, head: bytes) -> None:
    """Refuse tar archives, and zip archives and HDF5 files that begin with other data."""
    size = path.stat().st_size
    if _is_tar(head):
        what = "a tar archive (torch before 0.1.10 wrote such checkpoints)"
        raise CheckpointError(f"{path} is {what}", _UNPACK, rule="unsupported-format")
    with path.open("rb") as file:
        is_archive = any(re.match(pattern, head, re.DOTALL) for pattern, *_ in _FOREIGN)
        if not is_archive and ends_as_zip(file, size):
            message = f"{path} does not begin as a zip archive and ends as one; it was not opened"
            hint = "other programs could open another model in it"
            if head.startswith(_STATE):  # anybody can begin a file so
                message = f"{path} begins as the state of an interrupted run of bcu; it was not opened"
                hint = "if it is yours, the same command with --resume goes on with it, or remove it"
            raise UnsafeFileError(message, hint, rule="polyglot")
        place = 512  # an HDF5 file may begin at offset 512, 1024, 2048, …
        while place < size:
            file.seek(place)
            if file.read(len(_HDF5)) == _HDF5:
                what = "an HDF5 file after other data (Keras weights can hold programs)"
                raise CheckpointError(f"{path} is {what}", _CONVERT, rule="unsupported-format")
            place *= 2


def _is_tar(head: bytes) -> bool:
    """Whether a file begins with a tar header of any version, recognised by the checksum in it."""
    header = head[:512]
    if len(header) < 512 or not re.fullmatch(rb" *[0-7]{1,7}[ \0]{0,7}", header[148:156]):
        return False
    return int(header[148:156].strip(b" \0"), 8) == sum(header[:148] + b" " * 8 + header[156:])


def _head(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path} is a folder, not a model file", _NO_MODEL, rule="not-a-model")
        if not stat.S_ISREG(mode):
            message = f"{path} is a device or pipe, not a model file"
            raise CheckpointError(message, _NO_MODEL, rule="not-a-model")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        hint = "check the path to the model file"
        raise CheckpointError(f"{path} does not exist", hint, rule="file-missing") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{path} cannot be read: {reason}", "check the path and its permissions", rule="file-missing"
        ) from error
    if not head:
        raise CheckpointError(f"{path} is empty", "download the file again", rule="not-a-model")
    return head


def _signed_kind(head: bytes) -> Kind | None:
    """The kind of a file that has a signature; None if it has none."""
    if _LEGACY_MAGIC.match(head):
        return Kind.LEGACY_PICKLE
    if head[8:9] == b"{" and head[4:8] == bytes(4):  # a header size below 4 GiB, then JSON
        return Kind.SAFETENSORS
    if re.match(rb"\x80[\x02-\x05]", head):
        return Kind.PLAIN_PICKLE
    return Kind.ONNX if looks_like_onnx(head) else None


def _zip_kind(path: Path) -> Kind:
    names = member_names(path)
    below_root = {name.split("/", 1)[-1] for name in names}
    if "data.pkl" in below_root:
        has_code = "constants.pkl" in below_root or any(name.startswith("code/") for name in below_root)
        return Kind.TORCHSCRIPT if has_code else Kind.ZIP_PICKLE
    if MARKER in below_root:
        return Kind.EXPORTED
    what, hint = "a zip archive without a model of torch", _UNPACK
    if names and all(name.endswith(".npy") for name in names):
        what, hint = "a NumPy archive (.npz)", _CONVERT
    elif "model.weights.h5" in below_root:
        what, hint = "a Keras model (.keras)", _CONVERT
    elif any("exported_program" in name for name in below_root):
        what, hint = "a torch.export archive from before torch 2.7", _EXPORT
    raise CheckpointError(f"{path} is {what}", hint, rule="unsupported-format")


def _is_old_pickle(path: Path, head: bytes) -> bool:
    """Whether the file begins with a pickle of protocol 0 or 1, which has no signature.

    Some images and texts begin with valid opcodes too, so the file is followed as a pickle.

    Raises:
        CheckpointError: The file may be a pickle, and is too large to decide.
    """
    found = _holds_pickle(head, is_whole=len(head) < _HEAD_BYTES)
    if found is None:
        with path.open("rb") as file:
            data = file.read(MAX_PICKLE_BYTES + 1)
        found = _holds_pickle(data, is_whole=len(data) <= MAX_PICKLE_BYTES)
    if found is None:
        message = f"{path} may be a pickle, and is too large to decide"
        raise CheckpointError(message, _NO_MODEL, rule="unsupported-format")
    return found


def _holds_pickle(data: bytes, *, is_whole: bool) -> bool | None:
    """Whether bytes are pickles to their end, or import a global; None if more bytes are needed to decide."""
    for _ in range(_MOST_PICKLES):
        try:
            program = follow(data)
        except BrokenPickleError as error:
            if _imports_anything(error.uses) or error.ambiguous or error.heavy:
                return True
            return None if error.cut and not is_whole else False
        data = data[program.end :]
        if _imports_anything(program.uses) or not data:
            return True
    return None


def _imports_anything(uses: Iterable[GlobalUse]) -> bool:
    """Whether any global can exist; a text with the lines "class, count" looks like a global that cannot."""
    return any(use.name or use.opcode not in ("GLOBAL", "INST") for use in uses)


def _is_text(head: bytes) -> bool:
    try:
        text = head[: len(head) - 3].decode() if len(head) == _HEAD_BYTES else head.decode()
    except UnicodeDecodeError:
        return False
    return "\0" not in text
