"""Every file that a command read, for its report: so that whoever has the report can see which they were."""

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
"""The folders of each published data set below the one that ``--data NAME:FOLDER`` names."""


def files_read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Files with their SHA-256, and folders of images with one digest of what they hold.

    Args:
        paths: What the command reads where it is there; what is not is left out, and what comes twice is
            listed once.

    Returns:
        For a file ``path``, ``sha256`` and ``bytes``; None where it cannot be read any more. For a folder
        ``path``, ``files``, their number, and ``names_and_sizes_sha256``, over the sorted names relative to
        the folder and the sizes.
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
    """The folder or the archive that ``--data`` names; of a published data set its own folders alone."""
    if Path(spec).exists():
        return [Path(spec)]
    name, _, folder = spec.partition(":")
    return [Path(folder).expanduser() / below for below in PUBLISHED.get(name, ())]


def _file(path: Path) -> dict[str, Any]:
    """One file; it may be gone by now, which is no reason to lose the report."""
    try:
        return {"path": str(path), "sha256": sha256_of(path), "bytes": path.stat().st_size}
    except (CheckpointError, OSError):
        return {"path": str(path), "sha256": None, "bytes": None}


def _folder(folder: Path) -> dict[str, Any]:
    from bcu_cli.images.listing import list_files  # which imports NumPy and Pillow, that inspect goes without

    files, _ = list_files(folder)
    digest = hashlib.sha256()
    for name, file in sorted((os.fsencode(file.relative_to(folder)), file) for file in files):
        digest.update(name + b"\0" + _size(file) + b"\n")
    return {"path": str(folder), "files": len(files), "names_and_sizes_sha256": digest.hexdigest()}


def _size(file: Path) -> bytes:
    try:
        return str(file.stat().st_size).encode()
    except OSError:  # gone by now
        return b"gone"


def files_of_model(path: Path, arch: str | None = None) -> list[Path]:
    """What may be read to make a model file a classifier, whether it is there or not.

    Raises:
        CheckpointError: It is an index that makes no sense.
    """
    from bcu_cli.checkpoints.shards import INDEX_SUFFIX, read_index

    parts = read_index(path) if path.name.endswith(INDEX_SUFFIX) else ()
    return [path, *parts, *files_of_config(path, arch)]


def files_of_config(path: Path, arch: str | None = None) -> list[Path]:
    """What may be read beside a model file to tell its network, whether it is there or not."""
    beside = [path.with_name(name) for name in ("config.json", "preprocessor_config.json")]
    return [*beside, *([Path(arch.rpartition(":")[0])] if arch and ":" in arch else [])]


def files_read_of(model: dict[str, Any], arch: str | None = None) -> list[Path]:
    """What was read to make a model of a report a classifier, whether it is there or not."""
    return [*files_of_model(Path(model["path"]), arch), *map(Path, model["parts"])]


def places_of_data(spec: str) -> list[Path]:
    """What ``--data`` may name: a folder, an archive, or behind a colon the folder of a published set."""
    return [Path(spec), *([Path(place)] if (place := spec.partition(":")[2]) else [])]
