"""Outputs that break: a reader that has gone, a full disk, streams that were closed or know few letters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[1] / "data" / "backdoored.safetensors"
FULL = Path("/dev/full")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash, in which BCU is the command; its exit code is that of bcu."""
    bcu = f"'{sys.executable}' -m bcu_cli"
    return subprocess.run(
        ["bash", "-c", command.replace("BCU", bcu) + "; exit ${PIPESTATUS[0]}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "words", [f"inspect {MODEL}", f"inspect {MODEL} --json", "cleanse --help", "inspect nothere.pt --json"]
)
def test_a_reader_that_has_gone_is_no_bad_verdict(words: str) -> None:
    ran = shell(f"BCU {words} | :")
    assert ran.returncode == 141
    assert "Traceback" not in ran.stderr
    assert "BrokenPipe" not in ran.stderr


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("more", ["", "--json"])
def test_a_full_disk_is_said_in_a_line(more: str) -> None:
    ran = shell(f"BCU inspect {MODEL} {more} > {FULL}")
    assert ran.returncode == 2
    assert "error: the output could not be written: No space left on device" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("more", ["", "--json"])
def test_streams_that_are_closed_lead_nowhere(closed: str, more: str) -> None:
    ran = shell(f"BCU inspect {MODEL} {more} {closed}")
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "streams",
    [
        f"2> {FULL}",
        f"> {FULL}",
        f"> {FULL} 2> {FULL}",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        f">&- 2> {FULL}",
        "2> >(:)",
    ],
)
@pytest.mark.parametrize("words", ["inspect nothere.pt", "cleanse --nonsense"])
def test_an_error_that_nobody_can_read_is_no_bad_verdict(streams: str, words: str) -> None:
    """1 would mean that the file is unsafe."""
    assert shell(f"BCU {words} {streams}").returncode == 2


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_talk_that_finds_no_room_takes_nothing_from_the_document() -> None:
    ran = shell(f"BCU inspect {MODEL} nothere.pt --json 2> {FULL}")
    assert ran.returncode == 2
    assert '"schema_version": 2' in ran.stdout


def test_a_file_never_gets_the_number_of_a_stream_that_was_closed() -> None:
    """Or what a library prints would stand in a model."""
    program = "import os; from bcu_cli.cli import streams; streams.occupy_standard_streams(); "
    ends = "os._exit(os.open(os.devnull, os.O_RDONLY))"
    command = f"'{sys.executable}' -c '{program}{ends}' <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 3


def test_letters_that_the_terminal_does_not_know_are_escaped(tmp_path: Path) -> None:
    shutil.copy(MODEL, tmp_path / "modèle.safetensors")
    ran = shell(f"cd {tmp_path} && BCU inspect mod*.safetensors", PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert "mod\\xe8le.safetensors" in ran.stdout


def test_help_that_nobody_asked_for_is_followed_by_no_empty_error() -> None:
    ran = shell("BCU")
    assert ran.returncode == 2
    assert "Usage: " in ran.stdout + ran.stderr
    assert "error:" not in ran.stderr
