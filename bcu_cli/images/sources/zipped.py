"""Unpacking of a zip file of images, with the checks that an untrusted archive needs."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from bcu_cli.errors import ImagesError
from bcu_cli.images.sources.hidden import Hidden

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_RATIO = 100
"""Largest ratio of unpacked to packed bytes. Images hardly shrink; even flat bitmaps rarely exceed it."""

HARMLESS_BYTES = 64 * 2**20
"""Unpacked bytes up to which any ratio is allowed."""

MOST_DIRECTORY_BYTES = 2**27
"""Most bytes of the list of members, which is read at once; enough for a million members."""

_END, _END64, _LOCATOR64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_END_BYTES, _END64_BYTES, _LOCATOR64_BYTES = 22, 56, 20
_LONGEST_COMMENT = 2**16

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HINT = "if you trust it, unpack it yourself and name the folder"
_DAMAGES = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, IndexError, RuntimeError)
"""Exceptions that ``zipfile`` raises for damaged archives."""


@contextmanager
def unpacked(path: Path, hidden: Hidden | None = None) -> Iterator[Path]:
    """Unpack a zip file into a temporary folder, which is removed when the context ends.

    The list of members is checked before anything is written. No member becomes larger than the list says:
    ``zipfile`` stops reading at that length, and then finds a wrong checksum.

    Args:
        path: The archive.
        hidden: Counts the files and folders that are skipped for their names.

    Raises:
        ImagesError: The file is no zip file, is damaged, or could do harm. Harmful are names that lead out of
            the folder, links, encrypted members, and far more bytes than the archive has or the disk holds.
    """
    hidden = hidden or Hidden()
    with tempfile.TemporaryDirectory(prefix="bcu-") as name:
        folder = Path(name)
        try:
            _refuse_directory(path)
            with zipfile.ZipFile(path) as archive:
                _check(path, archive, folder)
                for info in archive.infolist():
                    place = PureWindowsPath(info.filename)
                    if place.parts and not hidden.holds(path, place, is_folder=info.is_dir()):
                        _extract(archive, info, folder.joinpath(*place.parts))
        except _DAMAGES as error:
            raise ImagesError(f"{path} is damaged: {error}", "make or download it again") from error
        except OSError as error:
            raise ImagesError(
                f"{path} cannot be unpacked into {folder.parent}: {error.strerror or error}",
                "unpack it yourself and name the folder, or have TMPDIR name another place",
            ) from error
        yield folder


def _refuse_directory(path: Path) -> None:
    """Refuse a file that is no zip file, or whose list of members is longer than ``MOST_DIRECTORY_BYTES``."""
    size = _directory_bytes(path) if path.is_file() else None
    if size is None:
        raise ImagesError(
            f"{path} is no zip file, or is cut short",
            "name a folder or a zip file; unpack other archives first",
        )
    if size > MOST_DIRECTORY_BYTES:
        raise ImagesError(f"{path} was not unpacked: its list of members has {size:,} bytes", _HINT)


def _directory_bytes(path: Path) -> int | None:
    """Length in bytes of the list of members, read from the end of a zip file; None if it has no such end."""
    with path.open("rb") as file:
        total = file.seek(0, os.SEEK_END)
        file.seek(max(0, total - _END_BYTES - _LONGEST_COMMENT - _LOCATOR64_BYTES - _END64_BYTES))
        tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        return None
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    at64 = at - _LOCATOR64_BYTES - _END64_BYTES  # where zipfile expects it
    if at64 >= 0 and tail.startswith(_END64, at64) and tail.startswith(_LOCATOR64, at64 + _END64_BYTES):
        size = int.from_bytes(tail[at64 + 40 : at64 + 48], "little")
    return size


def _check(path: Path, archive: zipfile.ZipFile, folder: Path) -> None:
    members = archive.infolist()
    for info in members:
        if why := _fault(info):
            raise ImagesError(f"{path} was not unpacked: its member {info.filename!r} {why}", _HINT)
    total = sum(info.file_size for info in members)
    if total > max(HARMLESS_BYTES, MAX_RATIO * path.stat().st_size):
        raise ImagesError(f"{path} was not unpacked: it would grow to {total:,} bytes", _HINT)
    if total > (free := shutil.disk_usage(folder).free):
        raise ImagesError(
            f"{path} was not unpacked: it needs {total:,} bytes, and {folder.parent} has {free:,}",
            "free some space, or have TMPDIR name another place",
        )


def _fault(info: zipfile.ZipInfo) -> str:
    """Why a member is refused; empty if it is not."""
    place = PureWindowsPath(info.filename)  # parses both kinds of slashes, and drives
    if place.drive or place.root or ".." in place.parts:
        return "points out of the archive"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return "is packed in a way that is not read here"
    return ""


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    if info.filename.endswith(("/", "\\")):
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as packed, target.open("xb") as out:
        shutil.copyfileobj(packed, out)
