"""Files that are being written: without a name where the system allows it, so that a killed run leaves none.

On Linux such a file has no name (O_TMPFILE) until it is whole. Where it replaces another one, it lies beside
that as ``.bcu-….part`` for the instant between two system calls; on other systems it does so all along.
Whoever writes it holds a lock on it, which ends with the process: what nobody holds was left by a killed run.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Self

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAMES = ".bcu-*.part"
"""What such files are called where they have a name."""


class Unfinished:
    """A file that takes a name once it is whole; a context, which leaves nothing of it otherwise.

    Args:
        folder: The folder of the file that it is to become.

    Attributes:
        file: The file, open for writing and reading bytes.

    Raises:
        OSError: The system refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name: Path | None = None
        self.file = os.fdopen(self._open(), "w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of bytes that found no room: what went wrong has been raised before
            self.file.close()
        if self._name is not None:
            with suppress(OSError):
                self._name.unlink()

    def readable_path(self) -> Path:
        """Where what was written so far can be read, before it has its name."""
        self.file.flush()
        return self._name or _by_number(self.file.fileno())

    def move_to(self, target: Path) -> None:
        """Take the place of ``target``, whole and on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if self._name is None:
            try:
                return _link(self.file.fileno(), target)
            except FileExistsError:
                self._name = _new_name(self._folder)
                _link(self.file.fileno(), self._name)
        self._name.replace(target)
        self._name = None
        return None

    def _open(self) -> int:
        descriptor = _open_unnamed(self._folder)
        while descriptor is None:
            self._name = _new_name(self._folder)
            named = os.open(self._name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            _lock(named)
            if os.fstat(named).st_nlink:
                return named
            os.close(named)  # another run took it for a leftover before it was locked
        _lock(descriptor)
        return descriptor


def remove_unfinished(folder: Path) -> None:
    """Remove what runs that were killed have left in a folder; what is still being written stays."""
    for leftover in folder.glob(NAMES):
        with suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    leftover.unlink()
            finally:
                os.close(descriptor)


def _open_unnamed(folder: Path) -> int | None:
    """A descriptor of a file without a name, or None where the system has no such files."""
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except OSError:  # a file system without them; opening one with a name says what else is wrong
        return None
    if _by_number(descriptor).exists():
        return descriptor
    os.close(descriptor)
    return None


def _by_number(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


def _link(descriptor: int, name: Path) -> None:
    """Give an open file a name; only with a descriptor does Python ask Linux to look behind the link."""
    os.link(_by_number(descriptor), name, src_dir_fd=descriptor)


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _new_name(folder: Path) -> Path:
    return folder / NAMES.replace("*", secrets.token_hex(6))
