"""The README keeps its word: it is short, its commands run, CI runs the two that it begins with."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from typing import TYPE_CHECKING

import pages
import pytest

from bcu_cli.images.sources import signs
from bcu_cli.models.architectures.index import load_index

if TYPE_CHECKING:
    from pathlib import Path

README = pages.README.read_text()
TWO_COMMANDS = ("pip install . && bcu demo", 'pip install ".[test]" && pytest')
SHORTER = {
    "cleanse": "--method bcu --epochs 1",
    "attack": "--epochs 1 --input-size 32",
}
"""What is added to commands that take minutes as they stand."""


def test_it_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 150


def test_ci_runs_the_two_commands_as_they_stand_in_the_readme() -> None:
    script = (pages.ROOT / ".ci/run").read_text()
    for command in TWO_COMMANDS:
        assert f"    {command}\n" in README
        assert command in script


def test_it_shows_five_command_lines() -> None:
    assert len(pages.commands(pages.README)) == 5


@pytest.fixture
def as_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the README's commands name; its images are few."""
    model = (pages.ROOT / "tests/data/backdoored.safetensors").read_bytes()
    for name in ("model.safetensors", "clean.safetensors"):
        (tmp_path / name).write_bytes(model)
    signs.write_folder(tmp_path / "my_photos", 5, seed=1, labelled=False)
    signs.write_folder(tmp_path / "labelled/train", 8, seed=2)
    signs.write_folder(tmp_path / "labelled/test", 2, seed=3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", pages.commands(pages.README))
def test_every_command_runs(bcu, as_in_the_readme: Path, command: str) -> None:
    _, verb, *words = shlex.split(command)
    if "--scan" in words:
        pytest.skip("takes a minute; tests/cli/test_scan.py runs it")
    if verb == "cleanse":
        (as_in_the_readme / "clean.safetensors").unlink()
    ran = bcu(verb, *words, *SHORTER.get(verb, "").split())
    assert ran.code == 0, ran.err
    if "--out" in words:
        assert (as_in_the_readme / words[words.index("--out") + 1]).is_file()


@pytest.mark.parametrize("page", [page for page in pages.PAGES if pages.python_blocks(page)])
def test_the_python_lines_call_what_there_is(page: Path) -> None:
    import bcu_cli

    calls = [
        node
        for block in pages.python_blocks(page)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and re.fullmatch(r"bcu\.\w+", ast.unparse(node.func))
    ]
    assert calls
    for call in calls:
        name = ast.unparse(call.func).removeprefix("bcu.")
        assert name in bcu_cli.__all__
        signature = inspect.signature(getattr(bcu_cli, name))
        signature.bind(*call.args, **{keyword.arg or "": keyword.value for keyword in call.keywords})


def test_its_table_of_results_is_that_of_the_results_page() -> None:
    """Each pair of figures in the README stands in the results, of the commit that both name."""
    results = (pages.ROOT / "examples/results.md").read_text()
    section = results.partition("## Method auto\n")[2].partition("\n## ")[0]
    text = README.partition("## Results\n")[2].partition("\n## ")[0]
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    commit = re.search(r"commit ([0-9a-f]{7})", text)
    assert commit
    assert commit[0] in section
    pairs = re.findall(r"([\d.]+) → \**([\d.]+) %", rows)
    assert 10 <= len(pairs) <= 24
    for before, after in pairs:
        assert f"{before} → {after} (" in section, f"{before} → {after}"


def test_its_figures_of_large_images_are_those_of_the_results_page() -> None:
    """Each pair of figures at 224 pixels stands in that section of the results, rounded."""
    results = (pages.ROOT / "examples/results.md").read_text()
    section = results.partition("## Real size: 224 pixels\n")[2].partition("\n## ")[0]
    text = " ".join(README.partition("**At 224×224**")[2].partition("\n\n")[0].split())
    for commit in re.findall(r"commit ([0-9a-f]{7})", text):
        assert f"commit {commit}" in section or f"Commit {commit}" in section
    pairs = re.findall(r"([\d.]+) → ([\d.]+) %", text)
    assert len(pairs) >= 4
    exact = re.findall(r"([\d.]+) → ([\d.]+)", section)
    rounded = {(round(float(a), 1), round(float(b), 1)) for a, b in exact}
    for before, after in pairs:
        assert (float(before), float(after)) in rounded, f"{before} → {after}"


def test_the_number_of_architectures_is_that_of_the_index() -> None:
    given = re.search(r"among\s+([\d,]+) architectures", (pages.ROOT / "docs/models.md").read_text())
    assert given
    assert int(given[1].replace(",", "")) == len(load_index().entries)


def test_the_method_in_the_docs_is_the_method_in_the_code() -> None:
    from bcu_cli.defenses.bcu import RATIOS

    assert "1 % in the first layers" in " ".join((pages.ROOT / "docs/methods.md").read_text().split())
    assert (min(RATIOS), max(RATIOS), RATIOS[-1]) == (0.01, 0.27, 0.1)
