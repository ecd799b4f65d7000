"""Files that are still being written; a killed run leaves none of them behind.

On Linux such a file has no name (O_TMPFILE) until it is complete. If it replaces another file, it is named
``.bcu-….part`` between two system calls. On other systems it has that name from the start. The writer holds a
lock on it, which ends with the process. So an unlocked file was left by a killed run.
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
"""Pattern of the names of unfinished files."""


class Unfinished:
    """A context manager for a file that gets its name once it is complete, and is removed otherwise.

    Args:
        folder: The folder in which the complete file will be.

    Attributes:
        file: The file, open for writing and reading bytes.

    Raises:
        OSError: The file cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name: Path | None = None
        self.file = os.fdopen(self._open(), "w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a failed write has been raised before
            self.file.close()
        if self._name is not None:
            with suppress(OSError):
                self._name.unlink()

    def readable_path(self) -> Path:
        """A path under which the bytes written so far can be read, before the file has its name."""
        self.file.flush()
        return self._name or _by_number(self.file.fileno())

    def move_to(self, target: Path) -> None:
        """Sync the file to the disk and move it to ``target``, replacing a file there."""
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
            os.close(named)  # another run removed it as a leftover before it was locked
        _lock(descriptor)
        return descriptor


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files of killed runs from a folder; files that are still being written stay."""
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
    """Open a file without a name, and return its descriptor; None if the system does not support that."""
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except OSError:  # perhaps unsupported; opening a file with a name raises all other errors
        return None
    if _by_number(descriptor).exists():
        return descriptor
    os.close(descriptor)
    return None


def _by_number(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


def _link(descriptor: int, name: Path) -> None:
    """Give an open file a name; with ``src_dir_fd``, Python makes Linux follow the link in /proc."""
    os.link(_by_number(descriptor), name, src_dir_fd=descriptor)


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _new_name(folder: Path) -> Path:
    return folder / NAMES.replace("*", secrets.token_hex(6))
