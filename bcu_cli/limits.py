"""Limits of memory and time for work with untrusted files.

A process cannot stop itself while it hangs in a C++ loop. So it reports to its supervisor
(:mod:`bcu_cli.runs.supervisor`) what it does and how long that may take. Without a supervisor the time limits
have no effect; the memory limits always hold.
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
"""Whether this system lets a process limit its memory and the size of the files it writes."""
READING_BYTES = 3 * 2**29
"""Memory for reading any file, in bytes. Importing a CUDA build of torch takes 0.8 GB of it."""
READING_BYTES_PER_BYTE = 6
"""Memory for each byte of a file, in bytes: searching a large tensor for NaN takes 2 to 4 times its size."""
READING_SECONDS = 100.0
"""Time for reading any file, in seconds. Importing torch from a slow disk may take most of it."""
READING_SECONDS_PER_BYTE = 60 / 10**9

PIPE = "BCU_SUPERVISOR"
"""Environment variable that holds the file descriptor of the pipe to the supervisor."""
_PR_SET_PDEATHSIG = 1


class _Link:
    """Connection to the supervisor, and the state that was reported to it last."""

    def __init__(self) -> None:
        self.pipe: int | None = None
        self.work: list[tuple[float, str]] = []
        self.keeps = 0
        self.foreign = False

    def report_state(self) -> None:
        """Send what this process does now; this restarts the clock of the time limit."""
        seconds, doing = self.work[-1] if self.work else (None, "")
        self.send({"seconds": seconds, "doing": doing, "keeps": self.keeps > 0, "foreign": self.foreign})

    def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        if self.pipe is None:
            return
        try:
            os.write(self.pipe, json.dumps(message).encode() + b"\n")
        except OSError:  # the supervisor has ended, so this process will be killed soon
            self.pipe = None


_link = _Link()


def join_supervisor() -> None:
    """Connect to the supervisor that started this process, if one did."""
    if (pipe := os.environ.pop(PIPE, None)) is None:
        return
    _link.pipe = int(pipe)
    os.set_inheritable(_link.pipe, False)
    end_with_parent()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # lets a background process group write to the terminal
    _link.report_state()


def end_with_parent() -> None:
    """Let Linux kill this process when its parent dies, for whatever reason."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def time_limit(seconds: float, doing: str) -> Iterator[None]:
    """Let the supervisor kill this process if the block takes longer than the limit.

    Args:
        seconds: The limit, in seconds.
        doing: What the block does, for the message: "reading model.pt".
    """
    _link.work.append((seconds, doing))
    _link.report_state()
    try:
        yield
    finally:
        _link.work.pop()
        _link.report_state()


@contextmanager
def keeping_state() -> Iterator[None]:
    """Let the supervisor wait after a first signal until the block has saved its state."""
    _link.keeps += 1
    _link.report_state()
    try:
        yield
    finally:
        _link.keeps -= 1
        _link.report_state()


def report(event: dict[str, Any]) -> None:
    """Send an event (:mod:`bcu_cli.events`), as plain values, to the supervisor if there is one."""
    if _link.pipe is not None:
        _link.send({"event": event})


def report_foreign_code() -> None:
    """Report that code from a file runs from now on; the supervisor then waits 2 seconds after a signal."""
    if not _link.foreign:
        _link.foreign = True
        _link.report_state()


@contextmanager
def reading_limits(path: Path, size: int) -> Iterator[None]:
    """Limit memory and time for the reading of a file.

    Args:
        path: The file.
        size: Size in bytes, including all files that an index lists.
    """
    import torch  # noqa: F401 - its import does not count towards the limits

    seconds = READING_SECONDS + READING_SECONDS_PER_BYTE * size
    with time_limit(seconds, f"reading {path}"), memory_limit(READING_BYTES + READING_BYTES_PER_BYTE * size):
        yield


@contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """Limit the memory that the block may allocate; an allocation beyond the limit fails.

    Args:
        extra: Memory on top of what the process has already, in bytes.
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
    """Limit a resource of this process; a stricter limit that the system or the user set stays in force.

    Args:
        name: Name of the resource, such as ``RLIMIT_DATA``.
        most: The limit, in the resource's unit; None removes it.
        for_good: Whether the process may never raise the limit again.
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
    """Whether an error or one of its causes is a lack of memory; C++ libraries report it by message only."""
    signs = ("can't allocate memory", "Cannot allocate memory", "bad_alloc", "out of memory")
    seen: set[int] = set()  # chains of causes can be circular
    reason: BaseException | None = error
    while reason is not None and id(reason) not in seen:
        if isinstance(reason, MemoryError) or any(text in str(reason) for text in signs):
            return True
        seen.add(id(reason))
        reason = reason.__cause__
    return False


def _data_bytes() -> int | None:
    """Memory that counts towards ``RLIMIT_DATA`` now, in bytes; None where the system does not report it."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[5]
    except (OSError, IndexError):
        return None
    return int(pages) * int(_page_bytes())


def _page_bytes() -> Any:
    return resource.getpagesize()
