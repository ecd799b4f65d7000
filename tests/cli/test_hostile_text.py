"""Text from outside does nothing to a terminal, a page or a log: names, metadata, warnings, errors."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from bcu_cli.cli import output
from bcu_cli.report.sarif import sarif
from bcu_cli.report.text import escaped, printable

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "\x1b[2J\x1b]0;x\x07[red]:skull:[/]\u202e\rFORGED\nerror: forged\x9b2J\u2028\udcff\ud800"
HARMFUL = ("\x1b[2J", "\x1b]0", "\u202e", "\rFORGED", "\nerror: forged", "\x9b", "\u2028")
KEPT = r"\x1b[2J\x1b]0;x\x07[red]:skull:[/]\u202e\rFORGED\nerror: forged\x9b2J\u2028\udcff\ud800"


def harmless(text: str) -> None:
    for part in HARMFUL:
        assert part not in text
    text.encode()


def on_a_terminal(*command: object) -> str:
    """What a command line shows where stdout and stderr are a terminal."""
    leader, follower = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed
                return
            if not part:
                return
            shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    environment = {**os.environ, "COLUMNS": "2000", "TERM": "xterm"}
    subprocess.run(command, stdout=follower, stderr=follower, env=environment, timeout=300, check=False)
    os.close(follower)
    reader.join()
    os.close(leader)
    return shown.decode()


def test_one_place_escapes_what_does_not_print() -> None:
    assert printable(HOSTILE) == KEPT
    assert printable("naïve café, 漢字 🐈") == "naïve café, 漢字 🐈"
    harmless(escaped(HOSTILE))


SHOWN = {
    "say": lambda: output.say(HOSTILE),
    "warn": lambda: output.warn(HOSTILE),
    "fail": lambda: output.fail(HOSTILE, HOSTILE),
    "table": lambda: output.table(HOSTILE, (HOSTILE,), [(HOSTILE,)]),
    "facts": lambda: output.facts([(HOSTILE, HOSTILE)]),
    "trace": lambda: output.trace(ValueError(HOSTILE)),
}


@pytest.mark.parametrize("way", SHOWN)
def test_no_way_to_the_screen_lets_it_through(way: str, capfd: pytest.CaptureFixture[str]) -> None:
    SHOWN[way]()
    shown = "".join(capfd.readouterr())
    harmless(shown.replace("\nerror: forged", "") if way == "trace" else shown)
    assert "[red]:skull:[/]" in shown.replace("\n", "")


def test_json_keeps_the_true_text(capfd: pytest.CaptureFixture[str]) -> None:
    output.document({"name": HOSTILE})
    text = capfd.readouterr().out
    harmless(text)
    assert json.loads(text)["name"] == HOSTILE


def test_sarif_holds_no_control_character_and_no_link() -> None:
    problem = {"rule": "file-missing", "message": f"{HOSTILE} [see](https://x.test)", "hint": "", "path": "a"}
    log = sarif({"files": [], "problems": [problem]}, 2)
    (notification,) = log["runs"][0]["invocations"][0]["toolExecutionNotifications"]
    harmless(notification["message"]["text"])
    assert r"\[see\](https://x.test)" in notification["message"]["text"]


PROGRAM = """
import logging, sys, time, warnings
from bcu_cli import events
from bcu_cli.cli import output
from bcu_cli.runs import library_warnings
library_warnings.neutralise(output.warn)
text = sys.argv[1].encode("latin-1").decode("unicode_escape")
warnings.warn(text)
logging.getLogger("timm").warning("of %s", text)
with events.listening(output.Screen()), events.progress(text) as part:
    for _ in range(4):
        part.advance(1, 8, text)
        time.sleep(0.2)
    part.restart(text)
    time.sleep(0.3)
"""


def test_bars_warnings_and_logs_on_a_terminal() -> None:
    shown = on_a_terminal(sys.executable, "-c", PROGRAM, HOSTILE.encode("unicode_escape").decode())
    assert "Traceback" not in shown
    harmless(shown)
    assert shown.count("[red]:skull:[/]") >= 4


def test_inspect_of_hostile_names_and_metadata(tmp_path: Path) -> None:
    name = "\x1b[2J\x1b]0;x\x07[red]:skull:[-]\u202e\rFORGED\nerror: forged\x9b2J\udcff"
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors", metadata={HOSTILE[:-2]: HOSTILE[:-2]})
    (tmp_path / "a.safetensors").rename(tmp_path / f"{name}.safetensors")
    (tmp_path / f"{name}.pt").write_bytes(b"no model")
    command = [sys.executable, "-m", "bcu_cli", "inspect"]
    for more in ([tmp_path], [tmp_path / f"{name}.safetensors"], [tmp_path, "--format", "sarif"]):
        shown = on_a_terminal(*command, *more)
        assert "Traceback" not in shown
        harmless(shown)
        assert "FORGED" in shown
    ran = subprocess.run([*command, tmp_path, "--json"], capture_output=True, text=True, check=False)
    paths = [file["path"] for file in json.loads(ran.stdout)["files"]]
    assert sorted(paths) == sorted(f"{tmp_path}/{name}.{ending}" for ending in ("safetensors", "pt"))


WORDS = {
    "a file": ["inspect", HOSTILE[:-1]],
    "an option": ["inspect", f"--{HOSTILE[:-1]}"],
    "a command": [HOSTILE[:-1]],
    "a value": ["cleanse", "m.pt", "--images", "x", "--out", "y", "--epochs", HOSTILE[:-1]],
    "images": ["cleanse", "m.pt", "--images", HOSTILE[:-1], "--out", "y"],
    "data": ["evaluate", "m.pt", "--data", HOSTILE[:-1]],
    "debug": ["inspect", HOSTILE[:-1], "--fail-on", HOSTILE[:-1], "--debug"],
}


@pytest.mark.parametrize("case", WORDS)
def test_what_a_command_line_says_of_its_own_words(bcu, case: str) -> None:
    from bcu_cli.cli.app import run  # the fixture refuses tracebacks, which --debug shows

    if case == "debug":
        assert run(WORDS[case]) == 2
        return
    ran = bcu(*WORDS[case])
    assert ran.code == 2
    harmless(ran.err + ran.out)
