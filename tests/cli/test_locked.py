"""One run at a time writes a file, and no lock lies beside it."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from bcu_cli.errors import UsageError
from bcu_cli.runs import locks

if TYPE_CHECKING:
    from pathlib import Path

needs_locks = pytest.mark.skipif(not locks._BYTES_HAVE_LOCKS, reason="no locks on single files here")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SECONDS_TO_WAIT", 0.3)


@needs_locks
def test_a_second_run_on_a_file_is_refused_and_others_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    (tmp_path / "link").symlink_to(out)
    with locks.locked_output(out):
        for same in (out, tmp_path / "link", tmp_path / "." / "out.safetensors"):
            with pytest.raises(UsageError, match="another run is at work on"), locks.locked_output(same):
                pytest.fail("the block must not run")
        with locks.locked_output(tmp_path / "other.safetensors"), locks.locked(tmp_path):
            pass
        assert [file.name for file in tmp_path.iterdir()] == ["link"]
    with locks.locked_output(out):
        pass


@needs_locks
def test_a_killed_run_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, time; from pathlib import Path; from bcu_cli.runs.locks import locked_output\n"
        "with locked_output(Path(sys.argv[1])):\n    print('locked', flush=True); time.sleep(60)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", program, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UsageError), locks.locked_output(out):
            pytest.fail("the block must not run")
        monkeypatch.setattr(locks, "_SECONDS_TO_WAIT", 20.0)
        other.kill()
        started = time.monotonic()
        with locks.locked_output(out):
            assert time.monotonic() - started < 10


def test_a_file_system_without_locks_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.locked_output(tmp_path / "out"), locks.locked_output(tmp_path / "out"):
        pass
    with locks.locked(tmp_path), locks.locked(tmp_path):
        pass


@needs_locks
def test_two_cleansings_of_one_output(bcu, untrained: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with locks.locked_output(out):
        ran = bcu("cleanse", untrained, "--images", photos, "--out", out)
    assert ran.code == 2
    assert f"another run is at work on {out}" in ran.error
    assert list(tmp_path.iterdir()) == []
