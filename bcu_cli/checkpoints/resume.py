"""The state of an interrupted run, kept in a file beside the run's output.

The file begins with three lines: the file type and layout, the hash of the run's fingerprint, and the SHA-256
of all other bytes. The rest is the state, written by ``torch.save``. It is not loaded before the SHA-256 has
been verified.
"""

from __future__ import annotations

import hashlib
import io
import stat
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from bcu_cli.checkpoints.writing import atomic_write
from bcu_cli.errors import CheckpointError, OutputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

SECONDS_BETWEEN = 60.0
"""Least time between two saves, in seconds."""
COSTS_BETWEEN = 50.0
"""Least time between two saves, in durations of the last one: saving takes at most 2 % of the time."""
_KIND = b"bcu: the state of an interrupted run, "
_LAYOUT = _KIND + b"layout 2\n"
_NO_DIGEST = b"0" * 64 + b"\n"
START_OVER = "start over without --resume, or remove it"
"""The hint for a state that cannot be used."""


class StateFile:
    """Saves, loads and removes the state of one run.

    Args:
        output: The file that the run will write; the state is beside it as ``NAME.resume``.
        fingerprint: Text of everything that determines the run; a state with another one is not resumed.
        writes: Whether this process writes the state; in distributed training only one process does.
    """

    def __init__(self, output: Path, fingerprint: str, *, writes: bool = True) -> None:
        self.path = path_of(output)
        self._run = hashlib.sha256(fingerprint.encode()).hexdigest().encode() + b"\n"
        self.failed = False
        """Whether any attempt to write the state has failed so far."""
        self._writes = writes
        self._saved_at = time.monotonic()
        self._cost = 0.0

    def load(self) -> dict[str, Any] | None:
        """Load the state that an interrupted run saved; None if there is none.

        Raises:
            CheckpointError: The file is damaged, or another version of bcu wrote it.
            UsageError: It belongs to a run with other options, files or seed.
            OutputError: The file is not a state of a run.
        """
        refuse_foreign(self.path)
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            message = f"{self.path} cannot be read: {error.strerror}"
            raise CheckpointError(message, START_OVER) from error
        return self._unpacked(content)

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, replacing the last one.

        Raises:
            OutputError: The state cannot be written, or a foreign file is in its place; the last state stays.
        """
        if not self._writes:
            return
        started = time.monotonic()
        self.failed, failed_before = True, self.failed
        try:
            self._write(state)
        finally:  # a failed attempt waits for the interval too
            self._saved_at = time.monotonic()
            self._cost = self._saved_at - started
        self.failed = failed_before

    def is_due(self) -> bool:
        """Whether the next save is due: after ``SECONDS_BETWEEN``, later if the last one took long."""
        interval = max(SECONDS_BETWEEN, COSTS_BETWEEN * self._cost)
        return self._writes and time.monotonic() - self._saved_at >= interval

    def remove(self) -> None:
        """Remove the state of a run that has finished.

        Raises:
            OutputError: A foreign file is in its place.
        """
        if self._writes:
            refuse_foreign(self.path)
            self.path.unlink(missing_ok=True)

    def _write(self, state: dict[str, Any]) -> None:
        refuse_foreign(self.path)
        with atomic_write(self.path) as file:
            hashed = _Hashed(file, _LAYOUT + self._run)
            file.write(_NO_DIGEST)
            hashed.pickle(state)
            file.seek(len(_LAYOUT + self._run))
            file.write(hashed.digest())

    def _unpacked(self, content: bytes) -> dict[str, Any]:
        if not content.startswith(_LAYOUT):
            raise CheckpointError(f"{self.path} was left by another version of bcu", START_OVER)
        start = len(_LAYOUT + self._run)
        run, digest = content[len(_LAYOUT) : start], content[start : start + len(_NO_DIGEST)]
        payload = memoryview(content)[start + len(_NO_DIGEST) :]
        whole = hashlib.sha256(content[:start])
        whole.update(payload)
        if digest != whole.hexdigest().encode() + b"\n":
            raise CheckpointError(f"{self.path} is damaged and cannot be resumed from", START_OVER)
        if run != self._run:
            raise UsageError(
                f"{self.path} was left by a run with other options, images, model or version of bcu",
                "repeat that run's options, or start over without --resume",
            )
        import torch

        try:
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except (
            Exception
        ) as error:  # the hash matched, so the bytes are intact but this torch cannot read them
            message = f"{self.path} was left by a run with another version of torch"
            raise CheckpointError(message, START_OVER) from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{self.path} holds no state of a run", START_OVER)
        return state


class _Hashed:
    """A file object for ``torch.save`` that hashes the bytes as they are written.

    Args:
        file: The file to write to.
        head: First bytes, which are written and hashed immediately.
    """

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        self._file = file
        self._hash = hashlib.sha256(head)
        self._error: OSError | None = None
        file.write(head)

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self._error = error
            raise

    def flush(self) -> None:
        """Do nothing; the owner of the file flushes it."""

    def pickle(self, state: dict[str, Any]) -> None:
        """Write a state; a write error is raised as the system's error, whose reason torch's error hides."""
        import torch

        try:
            torch.save(state, self)  # type: ignore[arg-type]  # it calls write and flush alone
        except RuntimeError:
            if self._error:
                raise self._error from None
            raise

    def digest(self) -> bytes:
        return self._hash.hexdigest().encode() + b"\n"


def path_of(output: Path) -> Path:
    """The path of the state of a run that writes ``output``."""
    return output.parent / (output.name + ".resume")


def refuse_foreign(path: Path) -> None:
    """Refuse a file that lies in the state's place and is not bcu's; it is never replaced or removed.

    Raises:
        OutputError: There is such a file.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                if file.read(len(_KIND)) == _KIND:
                    return
    except FileNotFoundError:
        if not path.is_symlink():
            return
    except OSError:  # an unreadable file may be foreign
        pass
    raise OutputError(
        f"{path} is in the way: bcu would write the state of an interrupted run there",
        "move that file, or choose another --out",
    )
