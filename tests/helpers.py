"""What tests import: the image sets, and command lines run in a process of their own."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Ran:
    """What a command line ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


_TOLD = tempfile.TemporaryDirectory(prefix="bcu-telling-", ignore_cleanup_errors=True)  # removed at exit


@dataclass(frozen=True)
class Telling:
    """Processes, and those that they start, say when they begin to train: a stop then waits."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(dir=_TOLD.name)))

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(Path(__file__).parent / "telling"), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "BCU_TELL": str(self.folder)}

    def is_training(self, pid: int) -> bool:
        """Whether a process trains, or the one that it supervises."""
        return any((self.folder / str(each)).exists() for each in [pid, *children_of(pid)])


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has ended
        if int(parent) == pid and state != "Z":
            found.append(int(entry.parent.name))
    return found


def descendants_of(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have started."""
    return [each for child in children_of(pid) for each in (child, *descendants_of(child))]


@dataclass(frozen=True)
class IdleReader:
    """A process that inspects files and waits for the next one.

    Args:
        process: The process.
        inherited: What it has inherited from this one; it serves only where a new one would inherit the same.
    """

    process: subprocess.Popen[bytes]
    inherited: object

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def _inherited(program: str) -> object:
    """What a process that inspects files has from its parent."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    limits = [resource.getrlimit(each) for each in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    limits += [resource.getrlimit(each) for each in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)]
    return program, variables, Path().stat().st_ino, list(sys.path), sys.executable, limits


def reuse_readers(monkeypatch: pytest.MonkeyPatch, kept: list[IdleReader]) -> None:
    """Let a command line inspect files by the process of the last one; there is one at most."""
    from bcu_cli.workflows import reader

    start, leave = reader._start, reader.Reader.__exit__

    def start_or_reuse() -> subprocess.Popen[bytes]:
        while kept:
            idle = kept.pop()
            if idle.process.poll() is None and idle.inherited == _inherited(reader._PROGRAM):
                return idle.process
            idle.end()
        return start()

    def keep(one: reader.Reader, kind: Any, error: Any, trace: Any) -> None:
        if kind is None and one._process is not None:
            kept.append(IdleReader(one._process, _inherited(reader._PROGRAM)))
            one._process = None
        leave(one, kind, error, trace)

    monkeypatch.setattr(reader, "_start", start_or_reuse)
    monkeypatch.setattr(reader.Reader, "__exit__", keep)


OUTPUTS = frozenset(("--out", "--page", "--preview", "--tsne", "--evidence", "--output", "--dir"))
"""Options that name what a command writes."""

_MOST_BYTES = 5_000_000


def _hashes(arguments: Sequence[object], folder: Path) -> dict[Path, str]:
    """SHA-256 of the small files on a command line that are its inputs."""
    found = {}
    for before, argument in zip(("", *map(str, arguments)), map(str, arguments), strict=False):
        option, _, value = argument.partition("=")
        if before in OUTPUTS or option in OUTPUTS:
            continue
        name = value if option.startswith("--") else argument
        with suppress(OSError, ValueError):  # no name of a file
            file = folder / name
            if name and file.is_file() and file.stat().st_size < _MOST_BYTES:
                found[file] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


@contextmanager
def inputs_unchanged(arguments: Sequence[object], folder: Path = Path()) -> Iterator[None]:
    """Assert that a command line leaves every file that it names as an input as it was.

    Args:
        arguments: The command line.
        folder: Where it runs.
    """
    before = _hashes(arguments, folder)
    yield
    changed = [str(file) for file, digest in before.items() if _hashes([file], Path()).get(file) != digest]
    assert not changed, f"{arguments} changed its input {changed}"


def bcu_process(*arguments: object, **options: Any) -> Ran:
    """Runs a command line as a user would, in a process of its own."""
    with inputs_unchanged(arguments, Path(options.get("cwd") or ".")):
        ran = subprocess.run(
            [sys.executable, "-m", "bcu_cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **options,
        )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def lessen_effort(monkeypatch: pytest.MonkeyPatch, **numbers: int) -> None:
    """Let method auto take these numbers of steps and images, whatever the size of the images."""
    from bcu_cli.defenses.adversarial import effort

    for name in ("USUAL", "LARGE"):
        monkeypatch.setattr(effort, name, replace(getattr(effort, name), **numbers))


def shorten_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each detector that searches take 3 steps, where its scores do not matter."""
    from bcu_cli import detectors
    from bcu_cli.detectors.base import find

    searching = [find(name) for name in detectors.names() if find(name).searches]
    assert len(searching) == 5
    for each in searching:
        monkeypatch.setitem(each.__init__.__kwdefaults__, "steps", 3)
