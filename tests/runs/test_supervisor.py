"""The process that watches another: whatever becomes of the child, it says so, and a signal ends both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bcu_cli import limits
from bcu_cli.runs import supervisor

JOINED = "import os, signal, sys, time; from bcu_cli import limits; limits.join_supervisor(); "
HANG = (
    "import ctypes; ctypes.CDLL(None).sleep(60)"  # as C++ in a loop does, it never gets to Python's handlers
)


def ended(program: str) -> supervisor.ChildExit:
    return supervisor.run(supervisor.program(JOINED + program), request=b"")


def test_what_a_child_writes_and_its_code_come_back() -> None:
    result = ended("print('answer'); sys.exit(7)")
    assert (result.code, result.output, result.fault) == (7, b"answer\n", None)


def test_a_long_answer_comes_back_whole() -> None:
    assert ended("print('a' * 300_000)").output == b"a" * 300_000 + b"\n"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "bcu was ended by SIGSEGV while reading x"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "memory ran out while reading x, and the system ended bcu"),
        ("os.kill(os.getpid(), signal.SIGFPE)", "bcu was ended by SIGFPE while reading x"),
    ],
)
def test_a_crash_is_explained(program: str, message: str) -> None:
    fault = ended(f"c = limits.time_limit(60, 'reading x'); c.__enter__(); {program}").fault
    assert fault is not None
    assert fault[0] == message


def test_work_that_takes_too_long_is_ended() -> None:
    started = time.monotonic()
    result = ended(f"c = limits.time_limit(0.5, 'reading x'); c.__enter__(); {HANG}")
    assert time.monotonic() - started < 30
    assert result.fault is not None
    assert result.fault[0] == "reading x took more than 0.5 seconds, and was ended"


def test_a_limit_that_is_over_limits_nothing() -> None:
    assert (
        ended(
            "c = limits.time_limit(0.3, 'a'); c.__enter__(); c.__exit__(None, None, None); time.sleep(1)"
        ).code
        == 0
    )


WATCH = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from bcu_cli.runs import supervisor
ended = supervisor.run(supervisor.program(sys.argv[2]))
print(json.dumps({"code": ended.code, "interrupted": ended.interrupted}), flush=True)
"""


def interrupted(program: str, numbers: list[int], *, group: bool = False) -> tuple[dict, float]:
    """What becomes of a supervised child after signals, and how many seconds that takes."""
    watching = subprocess.Popen(
        [sys.executable, "-c", WATCH, json.dumps(sys.path), JOINED + program],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert watching.stdout is not None
    assert watching.stdout.readline() == "ready\n"
    sent = time.monotonic()
    for number in numbers:
        if group:  # as a terminal does
            os.killpg(watching.pid, number)
        else:
            watching.send_signal(number)
        time.sleep(0.2)
    out, _ = watching.communicate(timeout=60)
    return json.loads(out.splitlines()[-1]), time.monotonic() - sent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_ends_a_child_that_does_not_hear(number: int) -> None:
    result, seconds = interrupted(f"print('ready', flush=True); {HANG}", [number])
    assert result["interrupted"]
    assert result["code"] < 0
    assert seconds < 5


def test_a_child_with_state_is_waited_for() -> None:
    program = (
        "signal.signal(signal.SIGINT, lambda *_: None); c = limits.keeping_state(); c.__enter__(); "
        "print('ready', flush=True); [time.sleep(0.1) for _ in range(40)]; sys.exit(130)"
    )
    result, _ = interrupted(program, [signal.SIGINT], group=True)
    assert result == {"code": 130, "interrupted": True}


def test_two_signals_end_a_child_with_state() -> None:
    program = f"c = limits.keeping_state(); c.__enter__(); print('ready', flush=True); {HANG}"
    result, seconds = interrupted(program, [signal.SIGINT, signal.SIGINT])
    assert result["code"] < 0
    assert seconds < 5


def test_a_child_that_runs_foreign_code_is_not_waited_for() -> None:
    program = (
        "c = limits.keeping_state(); c.__enter__(); limits.report_foreign_code(); "
        f"print('ready', flush=True); {HANG}"
    )
    result, seconds = interrupted(program, [signal.SIGTERM])
    assert result["code"] < 0
    assert seconds < 5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_child_ends_with_its_supervisor(tmp_path: Path) -> None:
    program = JOINED + f"print(os.getpid(), flush=True); {HANG}"
    watching = subprocess.Popen(
        [sys.executable, "-c", WATCH, json.dumps(sys.path), program], stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    child = int(watching.stdout.readline())
    watching.kill()
    watching.wait()
    watching.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_a_folder_cannot_bring_its_own_modules(tmp_path: Path) -> None:
    (tmp_path / "typing.py").write_text("raise SystemExit(9)")
    words = supervisor.command(["--version"])
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_memory_beyond_a_limit_is_an_error() -> None:
    program = "\n".join(
        [
            "from bcu_cli import limits",
            "with limits.memory_limit(100_000_000):",
            "    bytearray(50_000_000)",
            "    try:",
            "        bytearray(200_000_000)",
            "    except MemoryError:",
            "        pass",
            "    else:",
            "        raise SystemExit(3)",
            "bytearray(200_000_000)",
        ]
    )
    assert subprocess.run(supervisor.program(f"exec({program!r})"), check=False).returncode == 0


def test_without_a_supervisor_limits_of_time_are_silent() -> None:
    with limits.time_limit(0.0, "anything"), limits.keeping_state():
        pass
