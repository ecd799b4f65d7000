"""Locks that let only one run, including its child processes, work on a folder or file at a time.

The locks belong to the operating system: they end with the processes that hold them, and leave no files, as
lock files of libraries would.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import struct
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bcu_cli import events
from bcu_cli.errors import OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ANOTHER_FOLDER = "name a new folder with --out"
_SECONDS_TO_WAIT = 20.0
_SECONDS_BETWEEN = 0.1
_FLOCK = "hhqqi4x"
"""The layout of ``struct flock`` on 64-bit Linux: type, whence, start, length, process."""
_BYTES_HAVE_LOCKS = sys.platform == "linux" and sys.maxsize > 2**32


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Create a folder and lock it until the context ends, after waiting for a run that is about to end there.

    Yields:
        A file descriptor. Processes that inherit it keep the lock, even after this process was killed.

    Raises:
        UsageError: Another run holds the lock.
        OutputError: The folder cannot be created or opened.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder} cannot be used: {error.strerror}", ANOTHER_FOLDER) from error
    try:
        _take(partial(fcntl.flock, lock, fcntl.LOCK_EX | fcntl.LOCK_NB), folder)
        yield lock
    finally:
        os.close(lock)


@contextmanager
def locked_output(path: Path) -> Iterator[None]:
    """Lock an output file until the context ends, after waiting for a run that is about to end with it.

    The lock covers one byte of the file's folder, at an offset derived from the name. On systems without such
    locks nothing is locked.

    Raises:
        UsageError: Another run holds the lock.
    """
    target = Path(os.path.realpath(path))
    try:
        lock = os.open(target.parent, os.O_RDONLY)
    except OSError:  # a folder that is writable but not readable cannot be locked
        yield
        return
    try:
        if _BYTES_HAVE_LOCKS:
            _take(partial(_claim, lock, _lock_offset(target.name)), path)
        yield
    finally:
        os.close(lock)


def _lock_offset(name: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:7])


def _claim(folder: int, byte: int) -> None:
    """Claim a byte of a folder.

    A folder cannot be opened for writing, so only read locks are available, and these exclude nobody. So each
    run takes a read lock, checks whether another run has one too, and releases its lock if so.

    Raises:
        BlockingIOError: Another run has claimed the byte.
        OSError: The file system does not support such locks.
    """

    def request(kind: int) -> bytes:
        return struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)

    fcntl.fcntl(folder, fcntl.F_OFD_SETLK, request(fcntl.F_RDLCK))
    answer = fcntl.fcntl(folder, fcntl.F_OFD_GETLK, request(fcntl.F_WRLCK))
    if struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK:
        fcntl.fcntl(folder, fcntl.F_OFD_SETLK, request(fcntl.F_UNLCK))
        raise BlockingIOError


def _take(lock: Callable[[], None], what: Path) -> None:
    """Take a lock as soon as it is free; do nothing on a file system without locks.

    Raises:
        UsageError: The lock is not free after ``_SECONDS_TO_WAIT``.
    """
    deadline, reported = time.monotonic() + _SECONDS_TO_WAIT, False
    while True:
        try:
            return lock()
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                message = f"another run is at work on {what}"
                raise UsageError(message, "wait until it has ended, or stop it") from error
        except OSError:
            return None
        if not reported:
            events.say(f"waiting for another run to leave {what}")
        reported = True
        pause = random.uniform(0.5, 1.5)  # noqa: S311 - so that two waiting runs do not collide for ever
        time.sleep(pause * _SECONDS_BETWEEN)
