"""The pages of this repository, and what is written on them: commands, links, headings, Python lines."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
_COMMAND = re.compile(r"    +(?:\$ )?(bcu (?:inspect|cleanse|evaluate|attack|benchmark|demo)\b.*)")
_SCRIPT = re.compile(r"    +(?:PYTHONPATH=\S+ )?python (\S+\.py)\b")


def commands(page: Path) -> list[str]:
    """The command lines of ``bcu`` that a page shows, without what a shell does with their output."""
    lines = page.read_text().replace("\\\n", " ").splitlines()
    return [found[1].partition(" > ")[0] for line in lines if (found := _COMMAND.match(line))]


def scripts(page: Path) -> set[str]:
    """The scripts of this repository that a page calls."""
    return {found[1] for line in page.read_text().splitlines() if (found := _SCRIPT.match(line))}


def python_blocks(page: Path) -> list[str]:
    """The indented blocks that import bcu."""
    blocks = re.findall(r"(?:^    .*\n|^\n)+", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]
    return [block for block in plain if re.search(r"^import bcu_cli", block, re.MULTILINE)]


def links(page: Path) -> list[str]:
    """The targets of a page's links that lead into this repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _without_code(page.read_text()))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    made: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(f"{slug}-{made[slug]}" if slug in made else slug)
        made[slug] = made.get(slug, 0) + 1
    return found


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^    .*$", "", text, flags=re.MULTILINE))
