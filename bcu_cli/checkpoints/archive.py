"""Zip archives of torch, opened with every check that a stranger's archive needs."""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from typing import TYPE_CHECKING, Self

from bcu_cli.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

MAX_PICKLE_BYTES = 16 * 2**20  # 130,000 tensors' worth of names and shapes
MAX_TEXT_BYTES = 64 * 2**20  # all compressed members of an archive together: the code of a TorchScript file
_DAMAGED_HINT = "download the file again, or compare its checksum with the publisher's"
_MAY_BE_COMPRESSED = ("code", "extra")


def damaged(path: Path, why: str, rule: str = "damaged-file") -> CheckpointError:
    """The error for a file that is not whole, or was never right."""
    return CheckpointError(f"{path} is cut short or damaged: {why}", _DAMAGED_HINT, rule=rule)


def member_names(path: Path) -> list[str]:
    """The names of a zip's members, without checking anything but the directory.

    Raises:
        CheckpointError: The archive has no readable directory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise damaged(path, "its zip directory cannot be read") from error


class TorchArchive:
    """A zip written by torch: one top folder with ``data.pkl``, storages beside it, and perhaps code.

    Use it as a context manager. Members are named without the top folder.

    Args:
        path: The file.
        marker: The one member that marks the top folder.
        data: The archive itself, where it is a member of the file; None where it is the file.

    Raises:
        CheckpointError: The archive is damaged, or of a form that torch never writes and that can hide
            something: compressed weights, overlapping or twin members, names that leave the folder.
    """

    def __init__(self, path: Path, *, marker: str = "data.pkl", data: bytes | None = None) -> None:
        self.path = path
        self._marker = marker
        self._bytes = path.stat().st_size if data is None else len(data)
        try:
            self._zip = zipfile.ZipFile(path if data is None else io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
            raise damaged(path, "its zip directory cannot be read") from error
        try:
            self._members = self._checked_members()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def names(self) -> list[str]:
        """Names of all members, in the archive's order."""
        return list(self._members)

    def size_of(self, name: str) -> int:
        """A member's size in bytes; the error of a damaged file if there is no such member."""
        if name not in self._members:
            raise damaged(self.path, f"its member {name!r} is missing")
        return self._members[name].file_size

    def read(self, name: str) -> bytes:
        """A member's bytes, complete and with the right checksum."""
        self.size_of(name)
        try:
            return self._zip.read(self._members[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
            raise damaged(self.path, f"its member {name!r} cannot be read") from error

    def _checked_members(self) -> dict[str, zipfile.ZipInfo]:
        infos = self._zip.infolist()
        for info in infos:
            self._check_name(info)
        if min((info.header_offset for info in infos), default=0) != 0:
            raise self._suspect("there is something before its first zip member")
        roots = {info.filename.removesuffix(self._marker) for info in infos if self._is_marker(info.filename)}
        if len(roots) != 1:
            raise self._suspect(f"it holds {len(roots)} members {self._marker} where one is expected")
        root = roots.pop()
        members: dict[str, zipfile.ZipInfo] = {}
        seen: set[str] = set()  # torch's own reader finds members whatever the case of their letters
        for info in infos:
            name = info.filename.removeprefix(root)
            if not info.filename.startswith(root) or name.casefold() in seen:
                raise self._suspect(f"its zip member {info.filename!r} is not in its place or stands twice")
            members[name] = info
            seen.add(name.casefold())
        self._check_sizes(members)
        return members

    def _check_name(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise self._suspect(f"its zip member {name!r} points out of the archive", "zip-path")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise self._suspect(f"its zip member {name!r} is a symbolic link", "zip-path")

    def _check_sizes(self, members: dict[str, zipfile.ZipInfo]) -> None:
        stored = packed = 0
        for name, info in members.items():
            if info.flag_bits & 0x1:
                raise self._suspect(f"its zip member {name!r} is encrypted", "zip-encrypted")
            if info.compress_type == zipfile.ZIP_STORED:
                stored += info.file_size
            elif name.split("/")[0] in _MAY_BE_COMPRESSED:
                packed += info.file_size
            else:
                why = f"its zip member {name!r} is compressed, which torch.save never does"
                raise self._suspect(why, "zip-compressed")
            if name.endswith(".pkl") and info.file_size > MAX_PICKLE_BYTES:
                why = f"its member {name!r} of {info.file_size:,} bytes is too large to check"
                raise self._suspect(why, "impossible-size")
        if stored > self._bytes:
            raise self._suspect("its zip members claim more bytes than the file has", "impossible-size")
        if packed > MAX_TEXT_BYTES:
            raise self._suspect(f"its code would unpack to {packed:,} bytes", "zip-compressed")

    def _is_marker(self, name: str) -> bool:
        return name == self._marker or (name.endswith(f"/{self._marker}") and name.count("/") == 1)

    def _suspect(self, why: str, rule: str = "zip-layout") -> CheckpointError:
        hint = "torch.save does not write such files; get it from its publisher again"
        return CheckpointError(f"{self.path} was not opened: {why}", hint, rule=rule)
