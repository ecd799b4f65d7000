"""Commands that run beside each other in processes of their own: so many at a time, and stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bcu_cli.cli.running import Stop

_SECONDS_BETWEEN_LOOKS = 0.1
_TIED = """
import ctypes, os, signal, sys
getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the command, which Linux then asks to stop when its parent dies of whatever (PR_SET_PDEATHSIG)."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a process ended with; a negative code is the signal that killed it."""

    code: int
    out: str
    err: str


class _Child:
    """A process in a session of its own: what is typed at the terminal reaches it through its parent only."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], keep_open: Sequence[int]
    ) -> None:
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - end closes them
        self._process = subprocess.Popen(  # noqa: S603 - our own program, words of our own
            [sys.executable, "-IS", "-c", _TIED, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            env={**os.environ, **environment},
            pass_fds=keep_open,
            start_new_session=True,
        )

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_stop(self) -> None:
        """Once: a second signal would make it stop without keeping its state."""
        self._process.terminate()

    def end(self) -> Ended:
        """What it has ended with; it is killed where it has not, and so is what it has started itself."""
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        texts = []
        for file in (self._out, self._err):
            with file:
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        return Ended(code=code, out=texts[0], err=texts[1])


def run_all(
    commands: Sequence[tuple[str, Sequence[str]]],
    *,
    jobs: int,
    environment: Mapping[str, str],
    stop: Stop,
    on_end: Callable[[str, Ended], None],
    keep_open: Sequence[int] = (),
) -> None:
    """Run commands in their order, so many at a time.

    Once a stop is requested no more are started, and those that run are asked once (SIGTERM) and waited for.
    An exception, a second Ctrl-C among them, kills them.

    Args:
        commands: Names, and the words of what to run.
        jobs: How many at a time.
        environment: Variables that they see beside those of this process.
        stop: Whether to stop.
        on_end: Called with the name of each that has ended, and with what.
        keep_open: File descriptors that they inherit.
    """
    waiting = deque(commands)
    running: dict[str, _Child] = {}
    asked = False
    try:
        while running or (waiting and not stop.requested):
            while waiting and len(running) < jobs and not stop.requested:
                name, command = waiting.popleft()
                running[name] = _Child(command, environment, keep_open)
            if stop.requested and not asked:
                asked = True
                for child in running.values():
                    child.ask_to_stop()
            ended = [name for name, child in running.items() if child.has_ended()]
            for name in ended:
                on_end(name, running.pop(name).end())
            if not ended:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for child in running.values():
            child.end()
