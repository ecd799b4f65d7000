"""A process that watches another one work on foreign files, and ends it where it hangs or is told to.

The commands that open files of strangers run in a child. Whatever a file does to that child (a crash, a loop
in C++ that hears no signal, all memory taken), the supervisor lives, says in one line what happened, and ends
with the right exit code. It imports little, so that it costs some hundredths of a second.

The child tells it what it does (:mod:`bcu_cli.limits`): a limit of time for the work at hand, whether there
is state to keep, and whether code of a file runs.
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
"""Time to clean up for work that has no state to keep, or that runs a file's own code."""
_SECONDS_AFTER_TWO = 0.5
_LOOK_EVERY = 0.1
_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP) if os.name == "posix" else ()


@dataclass(frozen=True, kw_only=True)
class ChildExit:
    """How a child ended.

    Attributes:
        code: Its exit code; negative is the signal that killed it.
        output: What it wrote to stdout, where that was asked for.
        doing: What it did last, in its own words; empty where it did not say.
        seconds: The limit of time that it broke; None where it broke none.
        interrupted: Whether the user asked for a stop.
    """

    code: int
    output: bytes
    doing: str
    seconds: float | None
    interrupted: bool

    @property
    def fault(self) -> tuple[str, str] | None:
        """Message and hint of an end that the child could not explain itself; None where it ended well."""
        what = f" while {self.doing}" if self.doing else ""
        if self.seconds is not None:
            return (
                f"{self.doing} took more than {self.seconds:g} seconds, and was ended",
                "the file may be made to keep its readers busy; on a slow disk, use a copy on a fast one",
            )
        if self.code >= 0:
            return None
        if -self.code == signal.SIGKILL:
            return f"memory ran out{what}, and the system ended bcu", "free some memory, or use less of it"
        with suppress(ValueError):  # a signal without a name
            name = signal.Signals(-self.code).name
            return f"bcu was ended by {name}{what}", "the file may be made to break what opens it"
        return f"bcu was ended by signal {-self.code}{what}", "the file may be made to break what opens it"


def command(words: Sequence[str]) -> list[str]:
    """The words that run a command line of bcu in another process.

    Args:
        words: What stands after ``bcu``.
    """
    return [*program("from bcu_cli.__main__ import main; main()"), *words]


def program(text: str) -> list[str]:
    """The words that run Python code in another process.

    It finds modules where this process does, and never in the folder that it runs in.

    Args:
        text: The code.
    """
    found = f"import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); {text}"
    return [sys.executable, "-P", "-c", found, json.dumps(sys.path)]


def run(
    arguments: Sequence[str],
    *,
    request: bytes | None = None,
    on_event: Callable[[dict[str, Any]], object] | None = None,
) -> ChildExit:
    """Run a process of ours until it ends, breaks a limit, or is told to stop.

    Args:
        arguments: The program and its arguments.
        request: Bytes for its standard input; its standard output is then returned. None lets it use those
            of this process.
        on_event: Called with each event that the process reports (:func:`bcu_cli.limits.report`).
    """
    piped = subprocess.PIPE if request is not None else None
    reading, writing = os.pipe()
    signals: list[int] = []
    try:
        with _heard(signals.append):
            process = subprocess.Popen(  # noqa: S603 - our own program
                arguments,
                stdin=piped,
                stdout=piped,
                env={**os.environ, PIPE: str(writing)},
                pass_fds=[writing],
                process_group=0,  # what is typed at the terminal reaches it through this process only
            )
            os.close(writing)
            with process:
                return _Supervised(process, reading, signals, on_event).watch(request)
    finally:
        os.close(reading)


@contextmanager
def _heard(note: Callable[[int], None]) -> Iterator[None]:
    """Note signals while the context lasts, but for those that this process was started to ignore."""

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the shape of a handler
        note(number)

    numbers = [number for number in _HEARD if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rest(pipe: int) -> Iterator[bytes]:
    """What is left in the pipe of a child that has ended."""
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):  # what the child has started holds it open
        while data := os.read(pipe, 2**16):
            yield data


class _Supervised:
    """One child, and what it said last."""

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
        self._begun = b""
        self._stops = 0
        self._state: dict[str, Any] = {}
        self._since = time.monotonic()
        self._kill_at: float | None = None
        self._broken: float | None = None

    def watch(self, request: bytes | None) -> ChildExit:
        """Stay until it has ended."""
        try:
            output = self._follow(request)
        finally:
            self._kill()
        return ChildExit(
            code=self._process.wait(),
            output=output,
            doing=str(self._state.get("doing", "")),
            seconds=self._broken,
            interrupted=self._stops > 0,
        )

    def _follow(self, request: bytes | None) -> bytes:
        """Listen and pass on signals until it has ended; returns what it wrote to stdout."""
        chunks: dict[int, list[bytes]] = {self._pipe: []}
        if request is not None and self._process.stdin and self._process.stdout:
            with suppress(OSError):  # it is dead already
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
            self._pass_on()
            if self._is_over_time():
                self._kill()
        for file in waiting:
            chunks[file].extend(_rest(file))
        self._listen(b"".join(chunks.pop(self._pipe)))
        return b"".join(part for parts in chunks.values() for part in parts)

    def _ready(self, waiting: set[int]) -> list[int]:
        """The pipes with something to read, after a moment at most."""
        if waiting:
            return select.select(list(waiting), [], [], _LOOK_EVERY)[0]
        with suppress(subprocess.TimeoutExpired):  # it has closed them all, and is about to end
            self._process.wait(_LOOK_EVERY)
        return []

    def _listen(self, data: bytes) -> None:
        """Take up the messages that are whole: what the process does now, and what it reports."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:  # written by two threads at once: the next message says it all again
                continue
            if "event" not in message:
                self._state, self._since = message, time.monotonic()
            elif self._on_event:
                self._on_event(message["event"])

    def _is_over_time(self) -> bool:
        now = time.monotonic()
        seconds = self._state.get("seconds")
        if seconds is not None and now - self._since > seconds:
            self._broken = seconds
            return True
        return self._kill_at is not None and now > self._kill_at

    def _kill(self) -> None:
        """Kill it and what it has started."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
                os.killpg(self._process.pid, signal.SIGKILL)

    def _pass_on(self) -> None:
        """Act on the signals that came since the last look."""
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGTSTP:
                self._pause()
                continue
            self._stops += 1
            if not self._state:  # it has only begun, and does not listen yet
                self._kill()
            else:
                self._ask_to_stop(number)

    def _ask_to_stop(self, number: int) -> None:
        """Pass a signal on, and decide how long the child may take to end."""
        if self._stops > 1:
            self._kill_at = time.monotonic() + _SECONDS_AFTER_TWO
        elif not self._state["keeps"] or self._state["foreign"]:
            self._kill_at = time.monotonic() + _SECONDS_AFTER_A_SIGNAL
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def _pause(self) -> None:
        """Ctrl-Z stops both; the time does not count."""
        began = time.monotonic()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)
        self._since += time.monotonic() - began
