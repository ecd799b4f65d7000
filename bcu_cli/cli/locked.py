"""A folder on which one run at a time works, the processes that it has started included."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bcu_cli.cli import output
from bcu_cli.errors import OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANOTHER_FOLDER = "name a new folder with --out"
UNFINISHED = ".bcu-*.part"
"""What a process leaves behind that is killed while it writes."""
_SECONDS_TO_WAIT = 20.0


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
        _take(lock, folder)
        yield lock
    finally:
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    deadline, said = time.monotonic() + _SECONDS_TO_WAIT, False
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                message = f"another run is at work on {folder}"
                raise UsageError(message, "wait until it has ended, or stop it") from error
        except OSError:  # a file system without locks
            return None
        if not said:
            output.say(f"waiting for another run to leave {folder}")
        said = True
        time.sleep(0.1)
