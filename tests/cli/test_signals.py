"""Ctrl-C, SIGTERM and SIGHUP end a run in one line, whenever they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bcu_cli.limits import PIPE

MODEL = Path(__file__).parents[1] / "data" / "backdoored.safetensors"
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
PROGRAM = """
import atexit, os, signal, sys
number, when, handled = int(sys.argv[1]), sys.argv[2], sys.argv[3]
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(each, signal.SIG_DFL if each != signal.SIGINT else signal.default_int_handler)
if handled == "ignored":
    signal.signal(number, signal.SIG_IGN)
if handled == "again":
    atexit.register(lambda: (os.write(2, b"a slow exit"), os.kill(os.getpid(), number)))

class Sender:
    def find_spec(self, name, path, target=None):
        if name == when:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Sender())
sys.argv = ["bcu", *sys.argv[4:]]
from bcu_cli.__main__ import main
main()
"""


def signalled(number: int, when: str, *words: object, handled: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a command line, as the child of a supervisor, that gets a signal when a module is imported."""
    command = [sys.executable, "-c", PROGRAM, str(int(number)), when, handled, *map(str, words)]
    reading, writing = os.pipe()
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | {PIPE: str(writing)},
            pass_fds=[writing],
        )
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("when", ["bcu_cli.cli.app", "typer", "bcu_cli.workflows.reader"])
def test_a_signal_ends_a_run_in_one_line_while_it_starts(number: signal.Signals, when: str) -> None:
    ran = signalled(number, when, "inspect", MODEL)
    assert (ran.returncode, ran.stderr, ran.stdout) == (130, "interrupted\n", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_while_it_exits_says_nothing_more(number: signal.Signals) -> None:
    ran = signalled(number, "bcu_cli.workflows.reader", "inspect", MODEL, handled="again")
    assert (ran.returncode, ran.stderr, ran.stdout) == (130, "interrupted\n", "")


@pytest.mark.parametrize("code", [130, -signal.SIGKILL])
def test_what_a_stopped_child_said_is_not_said_again(code: int) -> None:
    """A child that was killed has not said it; in both cases a further signal ends the run silently."""
    program = (
        "import os, signal, sys; from bcu_cli.cli import supervised; from bcu_cli.runs import signals\n"
        "ended = supervised.supervisor.ChildExit(code=int(sys.argv[1]), output=b'', doing='',\n"
        "                                        seconds=None, interrupted=True)\n"
        "supervised.supervisor.run = lambda words: ended\n"
        "signals.handle(signals.end_at_once)\n"
        "assert supervised.run(['cleanse']) == 130\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    command = [sys.executable, "-c", program, str(int(code))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (130, "" if code == 130 else "interrupted\n")


def test_ctrl_c_at_the_very_first_import(tmp_path: Path) -> None:
    ran = signalled(signal.SIGINT, "bcu_cli.runs.signals", "inspect", MODEL)
    assert (ran.returncode, ran.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", MODEL, "--data", "x"],
        ["attack", "badnets", "--data", "x", "--out", "y"],
        ["inspect", MODEL, "--scan"],
    ],
)
def test_every_command_is_ended_by_termination(words: list[object]) -> None:
    ran = signalled(signal.SIGTERM, "torch", *words)
    assert (ran.returncode, ran.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_when_it_starts_stays_so(number: signal.Signals) -> None:
    ran = signalled(number, "bcu_cli.workflows.reader", "inspect", MODEL, handled="ignored")
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_a_run_that_does_not_heed_the_first(number: signal.Signals) -> None:
    program = (
        "import os, sys, time; from bcu_cli.runs import signals\n"
        "signals.handle(signals.interrupt)\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        os.kill(os.getpid(), int(sys.argv[1])); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        print('once', flush=True)\n"
        "print('twice')\n"
    )
    command = [sys.executable, "-c", program, str(int(number))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "once\n", "interrupted\n")
