"""Inspection of files in a separate process, so that a file which breaks its parser breaks nothing else.

One process inspects one file after another. It limits its own memory and output, and its parent limits the
time. A file at which it dies or takes too long stays undecided, and the next file gets a new process. The
answer is a line of JSON: nothing that comes from a process which has read hostile files is unpickled.

This module is both ends, and imports little, so that the process starts while its parent gets ready.
It is kept by hand because the pools of the standard library unpickle answers, and have no limit of time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bcu_cli import limits
from bcu_cli.limits import set_limit

if TYPE_CHECKING:
    from types import TracebackType

_MEMORY = limits.READING_BYTES
_SECONDS = limits.READING_SECONDS
_MOST_BYTES = 64 * 2**20
"""Most bytes of an answer; names and metadata of the largest models take a few megabytes."""
_SECONDS_TO_DIE = 5.0

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from bcu_cli.workflows import reader
reader.serve(int(sys.argv[1]))
"""
"""Program of the process; it imports from its parent's paths and never from the current folder."""

_OWN_RULES = ("reader-crashed", "reader-timeout", "reader-out-of-memory")
_REPORT = "nothing is known of it: do not open it with anything else; report it to where you found it"


class Reader:
    """A context manager for the process that inspects files.

    The process has a separate session, so that Ctrl-C reaches only the parent, which then ends the process.
    Linux also ends the process when the parent is killed.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = _start()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def inspect(self, path: Path, arch: str | None = None) -> dict[str, Any]:
        """Inspect a file by :func:`bcu_cli.workflows.inspection.inspect_file`.

        Args:
            path: The file.
            arch: The user's ``--arch``.

        Returns:
            The document of the file. It has a problem if the process did not survive the file.

        Raises:
            BcuError: The inspection fails for a reason that is not the file's, such as a wrong option.
        """
        if self._process is None:
            self._process = _start()
        from bcu_cli.checkpoints.shards import size_with_parts

        size = size_with_parts(path)
        memory = _MEMORY + limits.READING_BYTES_PER_BYTE * size
        request = {"path": str(path), "arch": arch, "memory": memory}
        seconds = _SECONDS + limits.READING_SECONDS_PER_BYTE * size
        line, in_time = _ask(self._process, json.dumps(request).encode() + b"\n", seconds)
        if not in_time:
            self._end()
            return _timeout(path, seconds)
        if not line.endswith(b"\n"):
            return _died(path, self._end(), too_long=len(line) >= _MOST_BYTES)
        try:
            answer = json.loads(line)
            document, refused = answer.get("file"), answer.get("refused")
        except (ValueError, RecursionError, AttributeError):
            document = refused = None
        if refused:
            _raise(*refused)
        if not isinstance(document, dict) or document.get("path") != str(path):
            self._end()
            return _crashed(path, "its description makes no sense")
        if (document.get("problem") or {}).get("rule") in _OWN_RULES:
            self._end()  # it may lack modules that it could not allocate, such as half of torch
        return document

    def _end(self) -> int | None:
        """End the process; returns its exit code, or None if it had not ended by itself."""
        process, self._process = self._process, None
        if process is None:
            return None
        code = process.poll()
        _kill(process)
        last = process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # bytes that the process never read
                pipe.close()  # type: ignore[union-attr]
        return last if code is not None else None


def _start() -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",  # each thread's stack counts as memory, on large machines gigabytes of it
    }
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-P", "-c", _PROGRAM, str(os.getpid()), json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # warnings of libraries may quote the file
        env=environment,
        start_new_session=True,
    )


def _ask(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> tuple[bytes, bool]:
    """Send a request; returns the answered line (cut if too long, or if the process died), and if in time."""
    assert process.stdin is not None  # noqa: S101 - for the types
    assert process.stdout is not None  # noqa: S101
    overran = threading.Event()

    def end() -> None:
        overran.set()
        _kill(process)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        with suppress(OSError):  # the process is dead
            process.stdin.write(request)
            process.stdin.flush()
        line = process.stdout.readline(_MOST_BYTES)
        if not line.endswith(b"\n") and len(line) < _MOST_BYTES:  # it is ending; its exit code says why
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_DIE)
    finally:
        timer.cancel()
        timer.join()
    return line, not overran.is_set()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants, unless it has been waited for: its id may be reused then."""
    if process.returncode is not None:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for zombies
            os.killpg(process.pid, signal.SIGKILL)


def _raise(message: str, hint: str) -> None:
    from bcu_cli.errors import BcuError

    raise BcuError(message, hint)


def _died(path: Path, code: int | None, *, too_long: bool) -> dict[str, Any]:
    if too_long:
        return _crashed(path, "its description is too long")
    if code is None:
        return _crashed(path, "it stopped answering")
    if code >= 0:
        return _crashed(path, f"it ended with code {code}")
    with suppress(ValueError):  # a signal without a name
        name = signal.Signals(-code).name
        if name == "SIGKILL":  # Linux kills whoever takes most memory when there is none left
            return _out_of_memory(path)
        return _crashed(path, f"it ended by {name}")
    return _crashed(path, f"it ended by signal {-code}")


def _crashed(path: Path, how: str) -> dict[str, Any]:
    message = f"{path} broke the process that looked at it: {how}"
    return _undecided(path, rule="reader-crashed", message=message, hint=_REPORT)


def _timeout(path: Path, seconds: float) -> dict[str, Any]:
    message = f"{path} took more than {seconds:.0f} seconds to look at"
    hint = "nothing is known of it; where the disk is slow, look at a copy on a fast one"
    return _undecided(path, rule="reader-timeout", message=message, hint=hint)


def _out_of_memory(path: Path) -> dict[str, Any]:
    message = f"{path} takes more memory to look at than a file of its size should, or than there is"
    hint = "nothing is known of it; if the machine has little memory left, look at it on a larger one"
    return _undecided(path, rule="reader-out-of-memory", message=message, hint=hint)


def _undecided(path: Path, *, rule: str, message: str, hint: str) -> dict[str, Any]:
    from bcu_cli.workflows.inspection import Inspection, Problem

    return Inspection(path=path, problem=Problem(rule=rule, message=message, hint=hint)).document()


def serve(parent: int) -> None:
    """Main function of the process: answer each line on stdin with a line on stdout.

    Args:
        parent: The id of the process to end with.
    """
    limits.end_with_parent()
    if os.getppid() != parent:  # the parent died before the kernel watched it
        return
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # keeps output of libraries out of the answer
    set_limit("RLIMIT_CORE", 0)
    tempfile.gettempdir()  # writes a file once; torch's compiler asks for the result
    set_limit("RLIMIT_FSIZE", 0)
    for line in sys.stdin.buffer:
        _respond(json.loads(line), answers)


def _respond(request: dict[str, Any], answers: BinaryIO) -> None:
    path = Path(request["path"])
    set_limit("RLIMIT_DATA", request["memory"])
    answer = _answer(path, request["arch"])
    answers.write(answer + b"\n")
    answers.flush()


def _answer(path: Path, arch: str | None) -> bytes:
    from bcu_cli.errors import BcuError, faulty_installation

    try:
        return json.dumps({"file": _look(path, arch)}, allow_nan=False).encode()
    except BcuError as error:
        return json.dumps({"refused": [error.message, error.hint]}).encode()
    except Exception as error:  # broken files can raise anything
        if installation := faulty_installation(error):
            return json.dumps({"refused": [installation.message, installation.hint]}).encode()
        if limits.is_lack_of_memory(error):
            document = _out_of_memory(path)
        else:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            document = _crashed(path, f"{type(error).__name__}: {reason}")
    return json.dumps({"file": document}).encode()


def _look(path: Path, arch: str | None) -> dict[str, Any]:
    from bcu_cli.workflows.inspection import inspect_file

    return inspect_file(path, arch, before_reading=_import_torch).document()


def _import_torch() -> None:
    """Import torch while Python may write the modules that it compiles, then forbid all writing.

    Until then only Python's own code has read the file.
    """
    if "torch" in sys.modules:
        return
    set_limit("RLIMIT_FSIZE", None)
    try:
        import torch  # noqa: F401 - for the readers
    finally:
        set_limit("RLIMIT_FSIZE", 0, for_good=True)
