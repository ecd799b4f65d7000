"""Folders and files on which one run at a time works, the processes that it has started included.

The locks are the system's own: they end with the processes that hold them, and leave no file behind.
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
    """Make a folder, wait for a run that is just ending there, and keep others out until the context ends.

    Gives a file descriptor; processes that inherit it keep the lock, even after this one was killed.

    Raises:
        UsageError: Another run is at work.
        OutputError: The folder cannot be used.
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
    """Wait for a run that is just ending with a file, and keep others from writing it until the context ends.

    The lock is on one byte of the file's folder, which the name decides. Systems without such locks go on
    without one.

    Raises:
        UsageError: Another run is to write the file.
    """
    target = Path(os.path.realpath(path))
    try:
        lock = os.open(target.parent, os.O_RDONLY)
    except OSError:  # a folder that may be written to and not be read has no lock either
        yield
        return
    try:
        if _BYTES_HAVE_LOCKS:
            _take(partial(_claim, lock, _number_of(target.name)), path)
        yield
    finally:
        os.close(lock)


def _number_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:7])


def _claim(folder: int, byte: int) -> None:
    """Claim a byte of a folder.

    A folder is never open for writing, so that only locks for reading can be had, which exclude nobody: each
    run takes one, asks whether there is another's, and lets go where there is.

    Raises:
        BlockingIOError: Another run has claimed it.
        OSError: The file system has no such locks.
    """

    def request(kind: int) -> bytes:
        return struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)

    fcntl.fcntl(folder, fcntl.F_OFD_SETLK, request(fcntl.F_RDLCK))
    answer = fcntl.fcntl(folder, fcntl.F_OFD_GETLK, request(fcntl.F_WRLCK))
    if struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK:
        fcntl.fcntl(folder, fcntl.F_OFD_SETLK, request(fcntl.F_UNLCK))
        raise BlockingIOError


def _take(lock: Callable[[], None], what: Path) -> None:
    """Take a lock once nobody else holds it; on a file system without locks there is none.

    Raises:
        UsageError: Somebody holds it for longer than a run takes to end.
    """
    deadline, said = time.monotonic() + _SECONDS_TO_WAIT, False
    while True:
        try:
            return lock()
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                message = f"another run is at work on {what}"
                raise UsageError(message, "wait until it has ended, or stop it") from error
        except OSError:
            return None
        if not said:
            events.say(f"waiting for another run to leave {what}")
        said = True
        pause = random.uniform(0.5, 1.5)  # noqa: S311 - two that ask at once do not for ever
        time.sleep(pause * _SECONDS_BETWEEN)
