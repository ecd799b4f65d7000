"""The state of an interrupted run, in a file beside the output that it was to write.

The file begins with three lines: what it is and in which layout, the run that it belongs to, and the SHA-256
of these two lines and of all that follows, which is what ``torch.save`` writes. Nothing of it is used before
the hash has been compared.
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

SECONDS_BETWEEN = 30.0
_KIND = b"bcu: the state of an interrupted run, "
_LAYOUT = _KIND + b"layout 2\n"
_NO_DIGEST = b"0" * 64 + b"\n"
START_OVER = "start anew without --resume, or remove it"
"""The hint for a state that is of no use."""


class StateFile:
    """Keeps the state of one run.

    Args:
        output: The file that the run is to write; the state lies beside it as ``NAME.resume``.
        fingerprint: What decides the run: a state with another one is of another run.
        writes: Whether it is this process that keeps it; where several train together only one does.
    """

    def __init__(self, output: Path, fingerprint: str, *, writes: bool = True) -> None:
        self.path = path_of(output)
        self._run = hashlib.sha256(fingerprint.encode()).hexdigest().encode() + b"\n"
        self.failed = False
        """Whether a state could not be written, so far."""
        self._writes = writes
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state that an earlier run left, or None.

        Raises:
            CheckpointError: The file is damaged, or of another version of bcu.
            UsageError: It belongs to a run with other options, files or seed.
            OutputError: It is no state of a run.
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
        """Write the state, in place of the last one.

        Raises:
            OutputError: It cannot be written, or another file has taken its place; the last state stays.
        """
        if not self._writes:
            return
        self._saved_at = time.monotonic()  # also where it fails: the next attempt has the same time
        self.failed, failed_before = True, self.failed
        refuse_foreign(self.path)
        with atomic_write(self.path) as file:
            hashed = _Hashed(file, _LAYOUT + self._run)
            file.write(_NO_DIGEST)
            hashed.pickle(state)
            file.seek(len(_LAYOUT + self._run))
            file.write(hashed.digest())
        self.failed = failed_before

    def is_due(self) -> bool:
        """Whether it is ``SECONDS_BETWEEN`` since the state was written last: a sudden end may come."""
        return self._writes and time.monotonic() - self._saved_at >= SECONDS_BETWEEN

    def remove(self) -> None:
        """Remove the state: the run is over, and nothing is left to resume.

        Raises:
            OutputError: Another file has taken its place.
        """
        if self._writes:
            refuse_foreign(self.path)
            self.path.unlink(missing_ok=True)

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
                "repeat that run's options, or start anew without --resume",
            )
        import torch

        try:
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except Exception as error:  # its bytes are as they were written: another version cannot read them
            message = f"{self.path} was left by a run with another version of torch"
            raise CheckpointError(message, START_OVER) from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{self.path} holds no state of a run", START_OVER)
        return state


class _Hashed:
    """A file whose bytes are hashed as they are written, where ``torch.save`` writes.

    Args:
        file: The file.
        head: Its first bytes, which are written and hashed at once.
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
        """Nothing: whoever gave the file flushes it."""

    def pickle(self, state: dict[str, Any]) -> None:
        """Write a state; torch's own error says nothing of the system's, which is raised in its place."""
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
    """Where the state of a run lies that is to write ``output``."""
    return output.with_name(output.name + ".resume")


def refuse_foreign(path: Path) -> None:
    """Refuse a file in the place of a state that bcu has not written, which is never replaced or removed.

    Raises:
        OutputError: It is there.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                if file.read(len(_KIND)) == _KIND:
                    return
    except FileNotFoundError:
        if not path.is_symlink():
            return
    except OSError:  # what cannot be read is not known to be bcu's
        pass
    raise OutputError(
        f"{path} is in the way: the state of an interrupted run would lie there, and it is none",
        "move that file, or choose another --out",
    )
