"""The files that a command read, for its report."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints import sha256_of
from bcu_cli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

PUBLISHED = {"cifar10": ("cifar-10-batches-py",), "gtsrb": ("gtsrb",), "imagenet": ("train", "val")}
"""The folders of each published data set inside FOLDER of ``--data NAME:FOLDER``."""


def files_read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Files with their SHA-256, and folders of images with one digest of their content.

    Args:
        paths: Paths that the command may read. Missing ones are left out, and duplicates are listed once.

    Returns:
        For a file: ``path``, ``sha256`` and ``bytes``, which are None where it has become unreadable. For a
        folder: ``path``, the number of ``files``, and ``names_and_sizes_sha256``, a digest of the sorted
            names
        relative to the folder and of the sizes.
    """
    entries: dict[str, dict[str, Any]] = {}
    for path in paths:
        place = os.path.realpath(path)
        if place in entries:
            continue
        if path.is_dir():
            entries[place] = _folder(path)
        elif path.is_file():
            entries[place] = _file(path)
    return list(entries.values())


def of_data(spec: str) -> list[Path]:
    """The folder or archive that ``--data`` names; for a published data set, only its folders."""
    if Path(spec).exists():
        return [Path(spec)]
    name, _, folder = spec.partition(":")
    return [Path(folder).expanduser() / below for below in PUBLISHED.get(name, ())]


def _file(path: Path) -> dict[str, Any]:
    """One file; the report is written even if the file has disappeared."""
    try:
        return {"path": str(path), "sha256": sha256_of(path), "bytes": path.stat().st_size}
    except (CheckpointError, OSError):
        return {"path": str(path), "sha256": None, "bytes": None}


def _folder(folder: Path) -> dict[str, Any]:
    from bcu_cli.images.sources.listing import list_files

    files, _ = list_files(folder)
    digest = hashlib.sha256()
    for name, file in sorted((os.fsencode(file.relative_to(folder)), file) for file in files):
        digest.update(name + b"\0" + _size(file) + b"\n")
    return {"path": str(folder), "files": len(files), "names_and_sizes_sha256": digest.hexdigest()}


def _size(file: Path) -> bytes:
    try:
        return str(file.stat().st_size).encode()
    except OSError:  # the file has disappeared
        return b"gone"


def files_of_model(path: Path, arch: str | None = None) -> list[Path]:
    """The files that may be read to load a model file, whether they exist or not.

    Raises:
        CheckpointError: The file is a damaged index.
    """
    from bcu_cli.checkpoints.shards import INDEX_SUFFIX, read_index

    parts = read_index(path) if path.name.endswith(INDEX_SUFFIX) else ()
    return [path, *parts, *files_of_config(path, arch)]


def files_of_config(path: Path, arch: str | None = None) -> list[Path]:
    """The files that may be read to identify a network, whether they exist or not."""
    beside = [path.parent / name for name in ("config.json", "preprocessor_config.json")]
    return [*beside, *([Path(arch.rpartition(":")[0])] if arch and ":" in arch else [])]


def files_read_of(model: dict[str, Any], arch: str | None = None) -> list[Path]:
    """The files that were read to load a model of a report, whether they exist or not."""
    return [*files_of_model(Path(model["path"]), arch), *map(Path, model["parts"])]


def places_of_data(spec: str) -> list[Path]:
    """The paths that ``--data`` may name: a folder, an archive, or the folder of a published set."""
    return [Path(spec), *([Path(place)] if (place := spec.partition(":")[2]) else [])]
