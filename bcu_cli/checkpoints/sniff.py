"""What kind of file is this? Decided by its first bytes and, for a zip, by its members; never by its name."""

from __future__ import annotations

import enum
import re
import stat
import zipfile
from typing import TYPE_CHECKING

from bcu_cli.errors import CheckpointError, UnsafeFileError

from . import shards
from .archive import member_names
from .exported import MARKER
from .onnx_schema import looks_like_onnx
from .opcodes import BrokenPickleError, globals_of

if TYPE_CHECKING:
    from pathlib import Path


class Kind(enum.StrEnum):
    """The kinds of file that are read; the values are for people."""

    SAFETENSORS = "safetensors"
    ZIP_PICKLE = "zip pickle of torch.save"
    LEGACY_PICKLE = "legacy pickle of torch.save"
    PLAIN_PICKLE = "plain pickle"
    TORCHSCRIPT = "TorchScript archive"
    EXPORTED = "torch.export archive"
    ONNX = "ONNX model"
    SHARDS = "index of a model in several files"


# The pickled number that torch.save began with; in any protocol, with or without a frame.
_LEGACY_MAGIC = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_HEAD_BYTES = 64 * 1024
_CONVERT = "convert it to safetensors with the tools of the library that wrote it"
_UNPACK = "unpack it and give bcu the model file inside"
_NO_MODEL = "give bcu the model file itself (.safetensors, .pt, .pth)"
_EXPORT = "save its weights with torch.save(model.state_dict(), ...) or as safetensors"

_FOREIGN = [  # formats of models and archives: (pattern at the very start of the file, what it is, hint)
    (rb"GGUF", "a GGUF file (a language model's weights)", "bcu reads image classifiers"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or TensorFlow weights)", _CONVERT),
    (rb"\x93NUMPY", "a NumPy array file (.npy)", _CONVERT),
    (rb"....TFL3", "a TensorFlow Lite model", _CONVERT),
    (rb"\x1f\x8b", "a gzip archive", _UNPACK),
    (rb"BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed archive", _UNPACK),
    (rb".{257}ustar", "a tar archive (torch before 0.1.10 wrote such checkpoints)", _UNPACK),
    (rb"\x7fELF|MZ", "a program", _NO_MODEL),
]
_NO_MODELS = [  # what lies beside models: as above
    (rb"\x89PNG|\xff\xd8\xff|GIF8|BM....\0\0\0\0|RIFF....WEBP|II\*\0|MM\0\*", "a picture", _NO_MODEL),
    (rb"%PDF", "a PDF document", _NO_MODEL),
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, not the file it stands for",
        "run `git lfs pull` in its folder",
    ),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page", "the download failed or needs a login; fetch it again"),
]


def sniff(path: Path) -> Kind:
    """Tell what kind of file this is.

    Raises:
        CheckpointError: It cannot be opened, is empty, or is none of the kinds that bcu reads: the message
            names what it is instead, and the rule is ``not-a-model`` for what often lies beside models.
        UnsafeFileError: It is of two formats at once.
    """
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if zipfile.is_zipfile(path) and not any(re.match(pattern, head, re.DOTALL) for pattern, *_ in _FOREIGN):
        message = f"{path} does not begin as a zip archive and ends as one; it was not opened"
        raise UnsafeFileError(message, "other programs could open another model in it", rule="polyglot")
    if (kind := _signed_kind(head)) is not None:
        return kind
    for rule, table in (("unsupported-format", _FOREIGN), ("not-a-model", _NO_MODELS)):
        for pattern, what, hint in table:
            if re.match(pattern, head, re.DOTALL):
                raise CheckpointError(f"{path} is {what}", hint, rule=rule)
    if _is_old_pickle(head):
        return Kind.PLAIN_PICKLE
    if shards.is_index(head) and _is_text(head):
        return Kind.SHARDS
    if _is_text(head):
        raise CheckpointError(f"{path} is a text file", _NO_MODEL, rule="not-a-model")
    message = f"{path} is no model file of a kind that bcu knows"
    raise CheckpointError(message, _NO_MODEL, rule="unsupported-format")


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
    """The kind of a file that begins as only that kind does; None for others."""
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
        what, hint = "a torch.export archive of before torch 2.7", _EXPORT
    raise CheckpointError(f"{path} is {what}", hint, rule="unsupported-format")


def _is_old_pickle(head: bytes) -> bool:
    """Whether the file begins with a pickle of protocol 0 or 1, which has no signature."""
    try:
        uses, end = globals_of(head)
    except BrokenPickleError:
        return False
    return bool(uses) or end == len(head)


def _is_text(head: bytes) -> bool:
    try:
        text = head[: len(head) - 3].decode() if len(head) == _HEAD_BYTES else head.decode()
    except UnicodeDecodeError:
        return False
    return "\0" not in text
