"""The pages keep their word: commands, options and files exist, links lead somewhere, no machine is named."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import pages
import pytest

from bcu_cli import attacks, defenses

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("reference", pages.ROOT / "docs/reference.py")
assert _SPEC
assert _SPEC.loader
reference = sys.modules["reference"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

MACHINE_PATH = re.compile(
    r"(?<![\w.~/$}*-])/(?:root|home|Users|work|workspace|tmp|mnt|scratch|content|private|var|data|opt|srv)/"
    r"[\w.-]+|\b[A-Za-z]:\\\\?(?:Users|home)\b"
)
ALLOWED = {
    "/var/lib",  # of the image's Ubuntu, in the Dockerfile
    "/data/model.safetensors",  # mounted into the containers of examples/cluster/kubernetes.yaml
    "/data/photos",
    "/data/clean.safetensors",
    "/tmp/x",  # named in hostile files, which nothing opens
    "/tmp/x.py",
    "/tmp/x.so",
    "/tmp/x.npy",
    "/tmp/other.pt",
}


def test_the_reference_is_that_of_the_commands() -> None:
    again = "python docs/reference.py > docs/commands.md"
    assert (pages.ROOT / "docs/commands.md").read_text() == reference.page(), f"made again by: {again}"


def test_every_command_of_the_help_is_in_the_reference(bcu) -> None:
    written = reference.page()
    for verb in re.findall(r"^[│ ]+([a-z]+)  ", bcu("--help").out.partition("Commands")[2], re.MULTILINE):
        assert f"\n## bcu {verb}\n" in written


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each command, as the reference has them."""
    sections = re.split(r"^## bcu (.+)$", reference.page(), flags=re.MULTILINE)[1:]
    found = {}
    for name, text in zip(sections[::2], sections[1::2], strict=True):
        declared = re.findall(r"^\| `(-[^`]+)` \|", text, re.MULTILINE)
        found[name] = {option for each in declared for option in each.split(", ")} | {"--help", "--debug"}
    return found


def test_there_are_commands_to_check() -> None:
    assert sum(len(pages.commands(page)) for page in pages.PAGES) >= 80


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_command_could_run(page: Path, options: dict[str, set[str]]) -> None:
    """Every option exists, and so does what it names: methods, attacks, plans."""
    wrong = [f"{command}: {fault}" for command in pages.commands(page) for fault in _faults(command, options)]
    wrong += [f"no {script}" for script in pages.scripts(page) if not (pages.ROOT / script).is_file()]
    assert not wrong


def _faults(command: str, options: dict[str, set[str]]) -> Iterator[str]:
    _, verb, *words = shlex.split(command)
    if set(words) & {"[OPTIONS]"}:
        return
    name = {"benchmark": "benchmark table" if words[:1] == ["table"] else "benchmark run"}.get(verb, verb)
    named = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    yield from (f"no {option}" for option in named if option not in options[name])
    given = dict(pairwise(words))
    if verb == "attack" and words and words[0] not in {*attacks.names(), "none", "all", "…"}:
        yield f"no attack {words[0]}"
    if given.get("--method", "auto") not in {*defenses.names(), "NAME"}:
        yield f"no method {given['--method']}"
    for word in words:
        if word.endswith(".toml") and word.startswith("examples/") and not (pages.ROOT / word).is_file():
            yield f"no {word}"


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    wrong = []
    for link in pages.links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in pages.anchors(target)):
            wrong.append(link)
    assert not wrong


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set(), [pages.README]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        ahead += [
            (page.parent / link.partition("#")[0]).resolve() for link in pages.links(page) if link[0] != "#"
        ]
    assert set(pages.PAGES) <= reached


def test_no_file_names_a_folder_of_a_machine() -> None:
    try:
        listed = subprocess.run(
            ["git", "-C", pages.ROOT, "ls-files", "-z"], capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout of git")
    files = [pages.ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(files) > 100
    wrong = []
    for file in files:
        data = file.read_bytes() if file.is_file() else b""
        if b"\0" in data[:4096]:
            continue
        found = set(MACHINE_PATH.findall(data.decode(errors="replace"))) - ALLOWED
        wrong += [f"{file.relative_to(pages.ROOT)}: {path}" for path in sorted(found)]
    assert not wrong
