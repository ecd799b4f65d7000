"""Zip archives of torch, opened with the checks that an untrusted archive needs."""

from __future__ import annotations

import io
import stat
from typing import IO, TYPE_CHECKING, Self

from bcu_cli.errors import CheckpointError

from .zip_directory import Member, ZipError, read_members

if TYPE_CHECKING:
    from pathlib import Path

MAX_PICKLE_BYTES = 16 * 2**20  # enough for the names and shapes of 130,000 tensors
MAX_TEXT_BYTES = 64 * 2**20  # uncompressed size of all compressed members, which hold TorchScript code
_DAMAGED_HINT = "download the file again, or compare its checksum with the publisher's"
_PICKLES = (".pkl", ".debug_pkl")


def damaged(path: Path, why: str, rule: str = "damaged-file") -> CheckpointError:
    """The error for a file that is incomplete or malformed."""
    return CheckpointError(f"{path} is cut short or damaged: {why}", _DAMAGED_HINT, rule=rule)


def refused(path: Path, why: str, rule: str = "zip-layout") -> CheckpointError:
    """The error for an archive whose layout torch never writes and which may hide something."""
    hint = "torch.save does not write such files; get it from its publisher again"
    return CheckpointError(f"{path} was not opened: {why}", hint, rule=rule)


def member_names(path: Path) -> list[str]:
    """The names of the members of a zip archive.

    Raises:
        CheckpointError: The archive is damaged or ambiguous (readers could see different members).
    """
    with path.open("rb") as file:
        return [member.name for member in _members(path, file, path.stat().st_size)]


def _members(path: Path, file: IO[bytes], size: int) -> list[Member]:
    try:
        return read_members(file, size)
    except ZipError as error:
        raise _as_checkpoint_error(path, error) from error
    except OSError as error:
        raise damaged(path, "its zip directory cannot be read") from error


def _as_checkpoint_error(path: Path, error: ZipError) -> CheckpointError:
    if error.rule == "damaged-file":
        return damaged(path, str(error))
    return refused(path, str(error), error.rule)


class TorchArchive:
    """A zip written by torch: one top folder that holds ``data.pkl``, the storages, and sometimes code.

    Use it as a context manager. Members are named without the top folder.

    Args:
        path: The file.
        marker: The member that identifies the top folder.
        data: Content of the archive if it is nested in the file; None if the file is the archive.

    Raises:
        CheckpointError: The archive is damaged, or has a form that torch never writes and that may hide
            something: compressed weights, overlapping or duplicate members, names outside the folder.
    """

    def __init__(self, path: Path, *, marker: str = "data.pkl", data: bytes | None = None) -> None:
        self.path = path
        self._marker = marker
        self._bytes = path.stat().st_size if data is None else len(data)
        self._file = path.open("rb") if data is None else io.BytesIO(data)
        try:
            self._members = self._checked_members(_members(path, self._file, self._bytes))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def names(self) -> list[str]:
        """The names of all members, in the archive's order."""
        return list(self._members)

    def size_of(self, name: str) -> int:
        """The uncompressed size of a member, in bytes.

        Raises:
            CheckpointError: There is no such member.
        """
        if name not in self._members:
            raise damaged(self.path, f"its member {name!r} is missing")
        return self._members[name].size

    def read(self, name: str) -> bytes:
        """The bytes of a member, checked against its size and checksum.

        Raises:
            CheckpointError: There is no such member, or it is damaged.
        """
        self.size_of(name)
        try:
            return self._members[name].read(self._file)
        except ZipError as error:
            raise damaged(self.path, str(error)) from error
        except OSError as error:
            raise damaged(self.path, f"its member {name!r} cannot be read") from error

    def _checked_members(self, found: list[Member]) -> dict[str, Member]:
        for member in found:
            self._check_name(member)
        roots = {member.name.removesuffix(self._marker) for member in found if self._is_marker(member.name)}
        if len(roots) != 1:
            raise refused(self.path, f"it holds {len(roots)} members {self._marker} where one is expected")
        root = roots.pop()
        members: dict[str, Member] = {}
        seen: set[str] = set()  # torch's reader ignores the case of member names
        for member in found:
            name = member.name.removeprefix(root)
            if not member.name.startswith(root) or name.casefold() in seen:
                why = f"its zip member {member.name!r} is misplaced or duplicated"
                raise refused(self.path, why)
            members[name] = member
            seen.add(name.casefold())
        self._check_sizes(members)
        return members

    def _check_name(self, member: Member) -> None:
        name = member.name
        parts = name.split("/")
        if "\\" in name or {"", ".", ".."} & set(parts) or ":" in parts[0]:
            raise refused(self.path, f"its zip member {name!r} points out of the archive", "zip-path")
        if stat.S_IFMT(member.attributes >> 16) not in (0, stat.S_IFREG):
            raise refused(self.path, f"its zip member {name!r} is a symbolic link or the like", "zip-path")

    def _check_sizes(self, members: dict[str, Member]) -> None:
        packed = pickled = 0
        for name, member in members.items():
            if member.is_deflated and not _may_be_compressed(name):
                why = f"its zip member {name!r} is compressed, which torch.save never does"
                raise refused(self.path, why, "zip-compressed")
            packed += member.size if member.is_deflated else 0
            pickled += member.size if name.endswith(_PICKLES) else 0
        if packed > MAX_TEXT_BYTES:
            raise refused(self.path, f"its code would unpack to {packed:,} bytes", "zip-compressed")
        if pickled > MAX_PICKLE_BYTES:
            why = f"its pickles of {pickled:,} bytes are too large to check"
            raise refused(self.path, why, "impossible-size")

    def _is_marker(self, name: str) -> bool:
        return name.endswith(f"/{self._marker}") and name.count("/") == 1


def _may_be_compressed(name: str) -> bool:
    """Whether torch compresses a member: TorchScript code and its table of source lines."""
    return name.startswith("code/") and name.endswith((".py", ".debug_pkl"))
