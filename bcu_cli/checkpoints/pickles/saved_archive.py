"""Checks of an archive of ``torch.save``: its members, its pickles and its storages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bcu_cli.checkpoints.archive import damaged
from bcu_cli.checkpoints.checkpoint import Finding
from bcu_cli.checkpoints.pickles.inert import open_inertly
from bcu_cli.checkpoints.pickles.inspection import BrokenPickleError, inspect_pickle

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from bcu_cli.checkpoints.archive import TorchArchive
    from bcu_cli.checkpoints.pickles.inert import StorageRef

STORAGE = "data/"
"""The folder of the storages in an archive."""
_MEMBERS = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d+",
    re.ASCII,
)


def find_faults(archive: TorchArchive, *, strict: bool = False) -> list[Finding]:
    """Findings about the pickles of an archive of ``torch.save``, and about members that it should not have.

    Args:
        archive: The archive.
        strict: Whether to report every object as unsafe, because torch opens the archive unrestricted.

    Raises:
        CheckpointError: A member is damaged, or a pickle cannot be followed.
    """
    findings = []
    for name in archive.names:
        if not _MEMBERS.fullmatch(name):
            message = f"carries {name}, which torch.save does not write"
            findings.append(Finding(rule="archive-program", message=message, severity="unsafe"))
        if name.endswith(".pkl"):
            try:
                findings += inspect_pickle(archive.read(name), strict=strict)
            except BrokenPickleError as error:
                raise damaged(archive.path, f"its pickle cannot be followed ({error})") from error
    return findings


def check_storages(archive: TorchArchive, storages: Mapping[str, StorageRef]) -> None:
    """Check that an archive holds exactly the storages that its pickle names, each of the right size.

    Raises:
        CheckpointError: A storage is missing, unused or of the wrong size.
    """
    held = {name.removeprefix(STORAGE) for name in archive.names if name.startswith(STORAGE)}
    if wrong := held ^ set(storages):
        key = min(wrong)
        what = "holds a storage that it does not use" if key in held else "lacks a storage"
        raise damaged(archive.path, f"it {what} ({key})")
    for key, storage in storages.items():
        size = archive.size_of(STORAGE + key)
        if size != storage.nbytes:
            raise damaged(archive.path, f"its storage {key} has {size:,} bytes and claims {storage.nbytes:,}")


def as_storage(data: bytearray) -> torch.UntypedStorage:
    """A torch storage over the given bytes, which are not copied."""
    import torch

    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.untyped_storage()


def find_faults_strictly(archive: TorchArchive) -> list[Finding]:
    """Findings about an archive that torch opens unrestricted; the sizes of its storages are checked too.

    Raises:
        CheckpointError: The archive is damaged, as in :func:`find_faults` and :func:`check_storages`.
    """
    if findings := find_faults(archive, strict=True):
        return findings
    try:
        storages = open_inertly(archive.read("data.pkl")).storages
    except Exception as error:  # broken bytes can raise any error in the unpickler
        raise damaged(archive.path, "a pickle in it cannot be followed") from error
    check_storages(archive, storages)
    return []
