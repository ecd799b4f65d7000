"""Supervision of a child process that opens untrusted files, and that is killed if it hangs.

A file can make the child crash, hang in a C++ loop that ignores signals, or use up the memory. The supervisor
survives this, reports in one line what happened, and ends with the right exit code. It imports little, so
that it costs only a few hundredths of a second.

The child reports its state (:mod:`bcu_cli.limits`): the time limit of its current work, whether it has state
to save, and whether code from a file runs.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcu_cli.limits import PIPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

_SECONDS_AFTER_A_SIGNAL = 2.0
"""Time to clean up, in seconds, for a child that has no state to save or that runs code from a file."""
_SECONDS_AFTER_TWO = 0.5
_SECONDS_BETWEEN_POLLS = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP) if os.name == "posix" else ()
_CRASH_HINT = "the file may be designed to crash programs that open it"


@dataclass(frozen=True, kw_only=True)
class ChildExit:
    """How a child ended.

    Attributes:
        code: The exit code; a negative code is the signal that killed it.
        output: The bytes that it wrote to stdout, if that was redirected; else empty.
        doing: The work that it reported last, such as "reading model.pt"; empty if it reported none.
        seconds: The time limit that it exceeded, in seconds; None if it exceeded none.
        interrupted: Whether the user asked for a stop.
    """

    code: int
    output: bytes
    doing: str
    seconds: float | None
    interrupted: bool

    @property
    def fault(self) -> tuple[str, str] | None:
        """Message and hint for a child that was killed or crashed; None if it ended by itself."""
        what = f" while {self.doing}" if self.doing else ""
        if self.seconds is not None:
            return (
                f"{self.doing} took more than {self.seconds:g} seconds, and was ended",
                "the file may be designed to keep programs busy; on a slow disk, use a copy on a fast one",
            )
        if self.code >= 0:
            return None
        if -self.code == signal.SIGKILL:
            return f"memory ran out{what}, and the system ended bcu", "free some memory, or use less of it"
        with suppress(ValueError):  # a signal without a name
            name = signal.Signals(-self.code).name
            return f"bcu was ended by {name}{what}", _CRASH_HINT
        return f"bcu was ended by signal {-self.code}{what}", _CRASH_HINT


def command(words: Sequence[str]) -> list[str]:
    """The program and arguments that run a bcu command in another process.

    Args:
        words: The command line after ``bcu``.
    """
    return [*program("from bcu_cli.__main__ import main; main()"), *words]


def program(text: str) -> list[str]:
    """The program and arguments that run Python code in another process.

    The process has the module search path of this one, and never imports from its working directory.

    Args:
        text: The Python code.
    """
    found = f"import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); {text}"
    return [sys.executable, "-P", "-c", found, json.dumps(sys.path)]


def run(
    arguments: Sequence[str],
    *,
    request: bytes | None = None,
    on_event: Callable[[dict[str, Any]], object] | None = None,
) -> ChildExit:
    """Run a process of bcu until it ends, exceeds a limit, or is stopped by the user.

    Args:
        arguments: The program and its arguments.
        request: Bytes for its stdin; its stdout is then returned. None lets it use those of this process.
        on_event: Called with each event that the process reports (:func:`bcu_cli.limits.report`).
    """
    piped = subprocess.PIPE if request is not None else None
    reading, writing = os.pipe()
    signals: list[int] = []
    try:
        with _signals_to(signals.append):
            process = subprocess.Popen(  # noqa: S603 - the program is bcu's
                arguments,
                stdin=piped,
                stdout=piped,
                env={**os.environ, PIPE: str(writing)},
                pass_fds=[writing],
                process_group=0,  # Ctrl-C at the terminal reaches only this process, which passes it on
            )
            os.close(writing)
            with process:
                return _Supervised(process, reading, signals, on_event).watch(request)
    finally:
        os.close(reading)


@contextmanager
def _signals_to(note: Callable[[int], None]) -> Iterator[None]:
    """Pass the numbers of signals to ``note`` while the context lasts; ignored signals stay ignored."""

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the shape of a handler
        note(number)

    numbers = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_remaining(pipe: int) -> Iterator[bytes]:
    """Read the remaining bytes in the pipe of a child that has ended."""
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):  # a descendant of the child holds the pipe open
        while data := os.read(pipe, 2**16):
            yield data


class _Supervised:
    """A supervised child, and the state that it reported last."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        pipe: int,
        signals: list[int],
        on_event: Callable[[dict[str, Any]], object] | None,
    ) -> None:
        self._process = process
        self._pipe = pipe
        self._signals = signals
        self._on_event = on_event
        self._partial_line = b""
        self._stops = 0
        self._state: dict[str, Any] = {}
        self._since = time.monotonic()
        self._kill_at: float | None = None
        self._exceeded: float | None = None

    def watch(self, request: bytes | None) -> ChildExit:
        """Supervise the child until it has ended."""
        try:
            output = self._follow(request)
        finally:
            self._kill()
        return ChildExit(
            code=self._process.wait(),
            output=output,
            doing=str(self._state.get("doing", "")),
            seconds=self._exceeded,
            interrupted=self._stops > 0,
        )

    def _follow(self, request: bytes | None) -> bytes:
        """Read messages and pass on signals until the child has ended, and return its stdout."""
        chunks: dict[int, list[bytes]] = {self._pipe: []}
        if request is not None and self._process.stdin and self._process.stdout:
            with suppress(OSError):  # the child has ended already
                self._process.stdin.write(request)
                self._process.stdin.close()
            chunks[self._process.stdout.fileno()] = []
        waiting = set(chunks)
        while self._process.poll() is None:
            for file in self._ready(waiting):
                data = os.read(file, 2**16)
                if not data:
                    waiting.discard(file)
                elif file == self._pipe:
                    self._listen(data)
                else:
                    chunks[file].append(data)
            self._handle_signals()
            if self._is_over_time():
                self._kill()
        for file in waiting:
            chunks[file].extend(_read_remaining(file))
        self._listen(b"".join(chunks.pop(self._pipe)))
        return b"".join(part for parts in chunks.values() for part in parts)

    def _ready(self, waiting: set[int]) -> list[int]:
        """The pipes with data to read; waits for at most ``_SECONDS_BETWEEN_POLLS``."""
        if waiting:
            return select.select(list(waiting), [], [], _SECONDS_BETWEEN_POLLS)[0]
        with suppress(subprocess.TimeoutExpired):  # the child has closed all pipes, and is about to end
            self._process.wait(_SECONDS_BETWEEN_POLLS)
        return []

    def _listen(self, data: bytes) -> None:
        """Handle all complete messages: states of the child, and events."""
        *lines, self._partial_line = (self._partial_line + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:  # two threads wrote at once; the next message repeats the whole state
                continue
            if "event" not in message:
                self._state, self._since = message, time.monotonic()
            elif self._on_event:
                self._on_event(message["event"])

    def _is_over_time(self) -> bool:
        now = time.monotonic()
        seconds = self._state.get("seconds")
        if seconds is not None and now - self._since > seconds:
            self._exceeded = seconds
            return True
        return self._kill_at is not None and now > self._kill_at

    def _kill(self) -> None:
        """Kill the child and its descendants."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for zombies
                os.killpg(self._process.pid, signal.SIGKILL)

    def _handle_signals(self) -> None:
        """Act on the signals that have arrived since the last call."""
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGTSTP:
                self._pause()
                continue
            self._stops += 1
            if not self._state:  # the child has just started, and handles no signals yet
                self._kill()
            else:
                self._ask_to_stop(number)

    def _ask_to_stop(self, number: int) -> None:
        """Pass a signal on to the child, and set the time at which it is killed."""
        if self._stops > 1:
            self._kill_at = time.monotonic() + _SECONDS_AFTER_TWO
        elif not self._state["keeps"] or self._state["foreign"]:
            self._kill_at = time.monotonic() + _SECONDS_AFTER_A_SIGNAL
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def _pause(self) -> None:
        """Pause both processes on Ctrl-Z; paused time does not count towards the limit."""
        began = time.monotonic()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)
        self._since += time.monotonic() - began
