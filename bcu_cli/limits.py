"""Limits on work with foreign files: the memory of this process, and the time that its supervisor allows.

A process cannot stop itself while it hangs in a loop of C++. So it tells the process that supervises it
(:mod:`bcu_cli.runs.supervisor`) what it does and how long that may take. Without a supervisor the limits of
time are silent; those of memory always hold.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEM_HAS_LIMITS = resource is not None
"""Whether this system lets a process limit its memory and what it writes."""
READING_BYTES = 3 * 2**29
"""Memory for reading any file. An import of torch that was built for CUDA takes 0.8 GB of it."""
READING_BYTES_PER_BYTE = 6
"""Memory for each byte of a file: a search for NaN in one large tensor takes 2 to 4 times the tensor."""
READING_SECONDS = 100.0
"""Time for reading any file. A slow disk may take most of it to import torch."""
READING_SECONDS_PER_BYTE = 60 / 10**9

PIPE = "BCU_SUPERVISOR"
"""The variable with the file descriptor that leads to the supervisor."""
_PR_SET_PDEATHSIG = 1


class _Link:
    """The line to the supervising process, and what it was told last."""

    def __init__(self) -> None:
        self.pipe: int | None = None
        self.work: list[tuple[float, str]] = []
        self.keeps = 0
        self.foreign = False

    def tell(self) -> None:
        """Send what this process does now; the clock of its limit starts anew."""
        seconds, doing = self.work[-1] if self.work else (None, "")
        self.send({"seconds": seconds, "doing": doing, "keeps": self.keeps > 0, "foreign": self.foreign})

    def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        if self.pipe is None:
            return
        try:
            os.write(self.pipe, json.dumps(message).encode() + b"\n")
        except OSError:  # the supervisor is gone, and this process is about to go, too
            self.pipe = None


_link = _Link()


def join_supervisor() -> None:
    """Take up the line to the supervisor that started this process; nothing where none did."""
    if (pipe := os.environ.pop(PIPE, None)) is None:
        return
    _link.pipe = int(pipe)
    os.set_inheritable(_link.pipe, False)
    end_with_parent()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it writes to a terminal of which it is not in front
    _link.tell()


def end_with_parent() -> None:
    """Let Linux kill this process when its parent dies, however that dies."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def time_limit(seconds: float, doing: str) -> Iterator[None]:
    """Let the supervisor end this process if the block takes longer.

    Args:
        seconds: How long it may take.
        doing: What is done, for the message: "reading model.pt".
    """
    _link.work.append((seconds, doing))
    _link.tell()
    try:
        yield
    finally:
        _link.work.pop()
        _link.tell()


@contextmanager
def keeping_state() -> Iterator[None]:
    """Let the supervisor wait after a first signal until the block has kept its state."""
    _link.keeps += 1
    _link.tell()
    try:
        yield
    finally:
        _link.keeps -= 1
        _link.tell()


def report(event: dict[str, Any]) -> None:
    """Send the supervisor an event (:mod:`bcu_cli.events`) as plain values; nothing where there is none."""
    if _link.pipe is not None:
        _link.send({"event": event})


def report_foreign_code() -> None:
    """Say that code of a file runs from now on: after a signal, the supervisor waits two seconds at most."""
    if not _link.foreign:
        _link.foreign = True
        _link.tell()


@contextmanager
def reading_limits(path: Path, size: int) -> Iterator[None]:
    """Limit memory and time for the reading of a file.

    Args:
        path: The file.
        size: Its bytes, with those of all the files that it is an index of.
    """
    import torch  # noqa: F401 - the memory and time of its import are not the file's

    seconds = READING_SECONDS + READING_SECONDS_PER_BYTE * size
    with time_limit(seconds, f"reading {path}"), memory_limit(READING_BYTES + READING_BYTES_PER_BYTE * size):
        yield


@contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """Limit the memory that the block may take beside what the process has; an allocation beyond it fails.

    Args:
        extra: Bytes.
    """
    used = _data_bytes()
    if resource is None or used is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    set_limit("RLIMIT_DATA", used + extra)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def set_limit(name: str, most: int | None, *, for_good: bool = False) -> None:
    """Limit this process; what the system or the user limits more stays so.

    Args:
        name: Such as ``RLIMIT_DATA``.
        most: The limit; None is without a limit.
        for_good: Whether the process may not raise it again.
    """
    if resource is None:
        return
    which = getattr(resource, name)
    _, hard = resource.getrlimit(which)
    most = resource.RLIM_INFINITY if most is None else most
    if hard != resource.RLIM_INFINITY and (most == resource.RLIM_INFINITY or most > hard):
        most = hard
    resource.setrlimit(which, (most, most if for_good else hard))


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error, or what led to it, is that no memory was left; C++ has no error of its own for it."""
    signs = ("can't allocate memory", "Cannot allocate memory", "bad_alloc", "out of memory")
    seen: set[int] = set()  # errors can be causes of each other: Python does not look for circles
    reason: BaseException | None = error
    while reason is not None and id(reason) not in seen:
        if isinstance(reason, MemoryError) or any(text in str(reason) for text in signs):
            return True
        seen.add(id(reason))
        reason = reason.__cause__
    return False


def _data_bytes() -> int | None:
    """What counts towards ``RLIMIT_DATA`` now; None where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[5]
    except (OSError, IndexError):
        return None
    return int(pages) * int(_page_bytes())


def _page_bytes() -> Any:
    return resource.getpagesize()
