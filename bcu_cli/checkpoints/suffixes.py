"""The suffixes of model files by format: what a file's name says that it is."""

from __future__ import annotations

import mimetypes
from typing import TYPE_CHECKING

from bcu_cli.errors import OutputError

from .checkpoint import Format

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_OF_PICKLES = (".pt", ".pth", ".bin", ".tar", ".ckpt", ".pkl", ".pickle")
SUFFIXES = {
    Format.SAFETENSORS: (".safetensors",),
    Format.PICKLE: _OF_PICKLES,
    Format.EXPORTED: (".pt2",),
    Format.ONNX: (".onnx",),
    Format.TORCHSCRIPT: (*_OF_PICKLES, ".torchscript", ".ts", ".jit"),
}
"""Suffixes by format; the first is the usual one."""
_OTHERS = (".h5", ".hdf5", ".keras", ".tflite", ".pb", ".gguf", ".npy", ".npz", ".joblib")
MODEL_SUFFIXES = frozenset([*_OTHERS, *(one for suffixes in SUFFIXES.values() for one in suffixes)])
"""The suffixes of model files, in formats that bcu reads and in others."""


def check_suffix(path: Path, format: Format, choices: Iterable[Format] = ()) -> None:  # noqa: A002
    """Refuse to write a model under a name that says it is another kind of file, before long work.

    A name without a suffix, or with one that names no kind of file (``clean.v2``), is free.

    Args:
        path: The file to write.
        format: The format that would be written.
        choices: The formats that ``--format`` could choose for this model.

    Raises:
        OutputError: The suffix belongs to another format, or to a file that is no model.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES[format] or not _names_a_kind(suffix):
        return
    listed = ", ".join(
        f"--format {each} writes {SUFFIXES[each][0]}" for each in choices if each is not format
    )
    hint = f"name a file that ends in {SUFFIXES[format][0]}" + (f"; {listed}" if listed else "")
    raise OutputError(f"{path} ends in {suffix}, and a {format} file would be written", hint)


def _names_a_kind(suffix: str) -> bool:
    """Whether files with a suffix are of a known kind; the system's own lists are not asked."""
    return suffix in MODEL_SUFFIXES or mimetypes.MimeTypes().guess_type(f"name{suffix}") != (None, None)
