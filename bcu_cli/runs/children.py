"""Commands that run beside each other in processes of their own, so many at a time, and stop together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from bcu_cli.errors import BcuError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bcu_cli.runs.resuming import Stop

Command: TypeAlias = "tuple[str, Sequence[str]]"
"""A name, and the words of what to run."""


class Engine(Protocol):
    """What runs commands, and asks after each which others come next."""

    def __call__(
        self,
        commands: Iterable[Command],
        *,
        stop: Stop,
        on_end: Callable[[str, CommandResult], Iterable[Command]],
    ) -> None:
        """Run them; once a stop is requested no more are started, and those that run are ended."""


_SECONDS_BETWEEN_LOOKS = 0.1
_TIED = """
import ctypes, os, signal, sys
getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the command, which Linux then asks to stop when its parent dies of whatever (PR_SET_PDEATHSIG)."""


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """What a process ended with, and after how many seconds; a negative code is the signal that killed it."""

    code: int
    out: str
    err: str
    seconds: float


def tied(command: Sequence[str]) -> list[str]:
    """The words of what becomes a command that Linux asks to stop when this process dies."""
    return [sys.executable, "-IS", "-c", _TIED, str(os.getpid()), *command]


class _Child:
    """A process in a session of its own: what is typed at the terminal reaches it through its parent only."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        keep_open: Sequence[int] = (),
        folder: str | None = None,
    ) -> None:
        self._started = time.perf_counter()
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - end closes them
        self._process = subprocess.Popen(  # noqa: S603 - our own program, words of our own
            tied(command),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            env={**os.environ, **environment},
            cwd=folder,
            pass_fds=keep_open,
            start_new_session=True,
        )

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        """Looks again and again: where Ray cancels a task, no signal arrives that would end a system call."""
        while not self.has_ended():
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def ask_to_stop(self) -> None:
        """Once: a second signal would make it stop without keeping its state."""
        self._process.terminate()

    def end(self) -> CommandResult:
        """What it has ended with; it is killed where it has not, and so is what it has started itself."""
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        texts = []
        for file in (self._out, self._err):
            with file:
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        seconds = round(time.perf_counter() - self._started, 3)
        return CommandResult(code=code, out=texts[0], err=texts[1], seconds=seconds)


def with_threads(count: int) -> dict[str, str]:
    """The variables that tell a process with how many threads to compute."""
    return {name: str(count) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def failure(ended: CommandResult, hint: str) -> BcuError:
    """Why a command of bcu ended without a result; ``hint`` is for where it did not say so itself."""
    try:
        error = json.loads(ended.out)["error"]
        return BcuError(str(error["message"]), str(error["hint"]))
    except (ValueError, KeyError, TypeError):
        last = (ended.err.strip().splitlines() or ["it said nothing"])[-1]
        if ended.code < 0:
            return BcuError(f"signal {-ended.code} ended it: {last}", "if memory ran out: fewer --jobs")
        return BcuError(f"it ended with exit code {ended.code}: {last}", hint)


def run_one(command: Sequence[str], environment: Mapping[str, str], folder: str) -> CommandResult:
    """Run a command in a folder; where this process is interrupted meanwhile, it is asked to stop."""
    child = _Child(command, environment, folder=folder)
    try:
        try:
            child.wait()
        except KeyboardInterrupt:
            child.ask_to_stop()
            child.wait()
    finally:
        ended = child.end()
    return ended


def run_all(
    commands: Iterable[Command],
    *,
    jobs: int,
    environment: Mapping[str, str],
    stop: Stop,
    on_end: Callable[[str, CommandResult], Iterable[Command]],
    keep_open: Sequence[int] = (),
) -> None:
    """Run commands in their order, so many at a time.

    Once a stop is requested no more are started, and those that run are asked once (SIGTERM) and waited for.
    An exception, a second Ctrl-C among them, kills them.

    Args:
        commands: What to run, under names that differ.
        jobs: How many at a time.
        environment: Variables that they see beside those of this process.
        stop: Whether to stop.
        on_end: Called with the name of each that has ended, and with what; the commands that it returns come
            before those that wait.
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
                waiting.extendleft(reversed([*on_end(name, running.pop(name).end())]))
            if not ended:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for child in running.values():
            child.end()
