"""The README keeps its word: commands exist as written, links lead somewhere, CI runs the two commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bcu_cli.models.index import load_index

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(
    {
        line.strip().removeprefix("$ ")
        for page in (README, (ROOT / "examples/results.md").read_text())
        for line in page.replace("\\\n", " ").splitlines()
        if re.match(r"\s+(\$ )?bcu (inspect|cleanse|evaluate|attack|benchmark|demo)\b", line)
    }
)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_exists(bcu, command: str) -> None:
    _, name, *words = shlex.split(command.partition(" > ")[0])
    within = [words[0] if words[0] == "table" else "run"] if name == "benchmark" else []
    shown = bcu(name, *within, "--help").out
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", shown), f"{name} has no {option}"


def test_ci_runs_the_two_commands_as_they_stand_in_the_readme() -> None:
    script = (ROOT / ".ci/run").read_text()
    for command in ("pip install . && bcu demo", 'pip install ".[test]" && pytest'):
        assert f"    {command}\n" in README
        assert command in script


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_number_of_architectures_is_that_of_the_index() -> None:
    said = re.search(r"among\s+([\d,]+) architectures", README)
    assert said
    assert int(said[1].replace(",", "")) == len(load_index().entries)


def test_the_method_in_the_docs_is_the_method_in_the_code() -> None:
    from bcu_cli.defenses.bcu import RATIOS

    assert "1 % in the first layers" in " ".join(README.split())
    assert (min(RATIOS), max(RATIOS), RATIOS[-1]) == (0.01, 0.27, 0.1)
