"""Models in several files with an index, as hubs store large models.

The index is JSON with a ``weight_map`` from tensor names to file names. The files must be in its folder.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from bcu_cli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

INDEX_SUFFIX = ".index.json"
_MAX_INDEX_BYTES = 64 * 2**20
_MAX_PARTS = 10_000
_RULE = "shards"
_HINT = "download the whole folder again"


def is_index(head: bytes) -> bool:
    """Whether a file with these first bytes is an index."""
    return head.lstrip()[:1] == b"{" and b'"weight_map"' in head


def read_index(path: Path) -> dict[Path, tuple[str, ...]]:
    """Read the files that an index lists, sorted by name, with the names of the tensors in each.

    Raises:
        CheckpointError: The index is malformed, names a file outside its folder, or a file is missing.
    """
    try:
        if not path.is_file():
            raise _unfit(path, "is not there")
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise _unfit(path, "is too large")
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {name: str(file) for name, file in weight_map.items() if isinstance(file, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unfit(path, "is no table of tensors and files") from error
    if not names or len(names) != len(weight_map):
        raise _unfit(path, "is no table of tensors and files")
    files = sorted(set(names.values()))
    if len(files) > _MAX_PARTS:
        raise _unfit(path, f"names {len(files):,} files")
    for file in files:
        if file in {".", ".."} or set("/\\:\0") & set(file):
            raise _unfit(path, f"names the file {file!r}, which does not lie beside it")
        if not _is_there(path.parent / file):
            raise _unfit(path, f"names the file {file!r}, which is not there")
    held: dict[str, list[str]] = {file: [] for file in files}
    for name, file in names.items():
        held[file].append(name)
    return {path.parent / file: tuple(held[file]) for file in files}


def size_with_parts(path: Path) -> int:
    """The size of a model file and of all files that it lists as an index, in bytes; 0 if it is missing."""
    files = [path]
    if path.name.endswith(INDEX_SUFFIX):
        with suppress(CheckpointError):  # reading the model reports the error
            files += read_index(path)
    size = 0
    for file in files:
        with suppress(OSError, ValueError):
            size += file.stat().st_size
    return size


def check_part(index: Path, part: Path, promised: Collection[str], found: Mapping[str, object]) -> None:
    """Check that a file holds exactly the tensors that the index lists for it.

    Raises:
        CheckpointError: A tensor is missing or not listed.
    """
    if wrong := set(promised) ^ set(found):
        where = "not in" if min(wrong) in promised else "without being promised in"
        raise _unfit(index, f"and {part.name} differ: {min(wrong)!r} is {where} that file")


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long
        return False


def _unfit(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"the index {path} {why}", _HINT, rule=_RULE)
