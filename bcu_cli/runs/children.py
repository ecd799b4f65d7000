"""Running several commands in parallel child processes that are stopped together."""

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
"""A name, and the program with its arguments."""


class Engine(Protocol):
    """A function that runs commands, and that asks ``on_end`` for further commands after each."""

    def __call__(
        self,
        commands: Iterable[Command],
        *,
        stop: Stop,
        on_end: Callable[[str, CommandResult], Iterable[Command]],
    ) -> None:
        """Run commands; once a stop is requested, no more are started and the running ones are stopped."""


_SECONDS_BETWEEN_LOOKS = 0.1
_START_TIED = """
import ctypes, os, signal, sys
getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Replaces itself by the command, to which Linux sends SIGTERM when the parent dies (PR_SET_PDEATHSIG)."""


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """The result of a command that has ended.

    Attributes:
        code: The exit code; a negative code is the signal that killed the process.
        out: The text that it wrote to stdout.
        err: The text that it wrote to stderr.
        seconds: How long it ran, in seconds.
    """

    code: int
    out: str
    err: str
    seconds: float


def stopping_with_parent(command: Sequence[str]) -> list[str]:
    """The program and arguments that run a command which Linux stops when this process dies."""
    return [sys.executable, "-IS", "-c", _START_TIED, str(os.getpid()), *command]


class _Child:
    """A child process in a separate session, so that Ctrl-C at the terminal reaches only its parent."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        keep_open: Sequence[int] = (),
        folder: str | None = None,
    ) -> None:
        self._started = time.perf_counter()
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - end closes them
        self._process = subprocess.Popen(  # noqa: S603 - the command is bcu's
            stopping_with_parent(command),
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
        """Poll until it has ended; no signal interrupts a blocking system call when Ray cancels a task."""
        while not self.has_ended():
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def ask_to_stop(self) -> None:
        """Send SIGTERM; call this only once, since a second signal stops it without saving its state."""
        self._process.terminate()

    def end(self) -> CommandResult:
        """Kill the process if it still runs, and all its descendants, and return its result."""
        with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for zombies
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
    """The environment variables that set the number of threads of a process."""
    return {name: str(count) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def failure(ended: CommandResult, hint: str) -> BcuError:
    """The error of a command of bcu that failed.

    Args:
        ended: The result of the command.
        hint: The hint if the command did not print an error as JSON.
    """
    try:
        error = json.loads(ended.out)["error"]
        return BcuError(str(error["message"]), str(error["hint"]))
    except (ValueError, KeyError, TypeError):
        last = (ended.err.strip().splitlines() or ["no output"])[-1]
        if ended.code < 0:
            return BcuError(f"signal {-ended.code} ended it: {last}", "if memory ran out: fewer --jobs")
        return BcuError(f"it ended with exit code {ended.code}: {last}", hint)


def run_one(command: Sequence[str], environment: Mapping[str, str], folder: str) -> CommandResult:
    """Run a command in a folder; a KeyboardInterrupt in this process stops the command."""
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
    """Run commands in order, a limited number at a time.

    Once a stop is requested, no more commands are started. Running ones get one SIGTERM, and their end is
    awaited. An exception, such as that of a second Ctrl-C, kills them.

    Args:
        commands: The commands to run, with different names.
        jobs: Number of commands that run at a time.
        environment: Environment variables of the commands, in addition to those of this process.
        stop: Whether to stop.
        on_end: Called with the name and the result of each command that has ended; the commands that it
            returns run before those that wait.
        keep_open: File descriptors that the commands inherit.
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
