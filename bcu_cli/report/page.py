"""An evaluation as a page: a self-contained HTML file, or an image (``report/plot.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints import atomic_write, check_writable, sha256_of
from bcu_cli.errors import UsageError
from bcu_cli.report import optional, svg
from bcu_cli.report.text import escaped, interval, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar for one class.

    Args:
        name: Name of the class.
        share: A measure of a report (value, hits, of, interval95); None where there is no image.
        marked: Whether to highlight the class, as the target of an attack.
    """

    name: str
    share: dict[str, Any] | None
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """Predictions of one model on one set of images, clean or triggered.

    Args:
        title: Title, with the model and the trigger.
        facts: Names and values.
        measures: Names and measures of a report.
        classes: Class names in label order.
        counts: Images by (true class, predicted class); pairs without an image may be left out.
        bars_title: Title of the bars.
        bars: One bar for each class.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    measures: tuple[tuple[str, dict[str, Any]], ...]
    classes: tuple[str, ...]
    counts: Mapping[tuple[int, int], int]
    bars_title: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page: title, facts, the lines of a verdict (empty without conditions), and sections."""

    title: str
    facts: tuple[tuple[str, str], ...]
    verdict: tuple[str, ...]
    sections: tuple[Section, ...]


def check(path: Path, *, inputs: Iterable[Path]) -> None:
    """Check before long work that the page can be drawn and written.

    Raises:
        UsageError: The suffix is neither ``.html`` nor ``.png``, or matplotlib is missing for ``.png``.
        OutputError: The path is an input, or cannot be written.
    """
    if path.suffix not in (".html", ".png"):
        raise UsageError(f"--page {path} is neither .html nor .png", "name a file with one of these endings")
    if path.suffix == ".png":
        optional.require("--page", path, "matplotlib")
    check_writable(path, inputs=inputs)


def write(page: Page, path: Path) -> str:
    """Write the page, HTML or PNG by its suffix, and return the file's SHA-256.

    Raises:
        OutputError: The page cannot be written.
    """
    with atomic_write(path) as file:
        if path.suffix == ".png":
            from bcu_cli.report import plot

            plot.draw(page.sections, file)
        else:
            file.write(as_html(page).encode())
    return sha256_of(path)


def as_html(page: Page) -> str:
    """The page as HTML that is also well-formed XML; text from files is escaped."""
    links = "".join(f'<li><a href="#s{i}">{escaped(s.title)}</a></li>' for i, s in enumerate(page.sections))
    verdict = "".join(f"<li>{escaped(line)}</li>" for line in page.verdict)
    body = [
        f"<h1>{escaped(page.title)}</h1>",
        f'<ul class="verdict">{verdict}</ul>' if verdict else "",
        facts(page.facts),
        f"<nav><ul>{links}</ul></nav>" if len(page.sections) > 1 else "",
        *(_section(section, i) for i, section in enumerate(page.sections)),
    ]
    return framed(page.title, body)


def framed(title: str, parts: Iterable[str]) -> str:
    """A complete HTML page around its parts, with the style of all pages."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="color-scheme" content="light dark"/>'
        f"<title>{escaped(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _section(section: Section, number: int) -> str:
    measures = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{percent(share["value"])}</td>'
        f"<td>{share['hits']} of {share['of']}</td><td>{interval(share)}</td></tr>"
        for name, share in section.measures
    )
    return f"""<section id="s{number}">
<h2>{escaped(section.title)}</h2>
{facts(section.facts)}
<div class="wide"><table>
<thead><tr><th scope="col">measure</th><th scope="col">value</th><th scope="col">images</th>
<th scope="col">95 % interval</th></tr></thead>
<tbody>{measures}</tbody></table></div>
<figure><figcaption>Confusion matrix: rows are true classes, columns predicted ones, cells percent of the row.
<b class="right">Correct</b> and <b class="wrong">wrong</b> predictions.</figcaption>
<div class="wide">{svg.heat_map(section.classes, section.counts)}</div></figure>
<figure><figcaption>{escaped(section.bars_title)}</figcaption>
<div class="wide">{svg.bars(section.bars, section.bars_title)}</div></figure>
</section>"""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values as an HTML list."""
    rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in pairs)
    return f"<dl>{rows}</dl>" if rows else ""


_STYLE = """
:root { --page: #ffffff; --ink: #1b1f24; --faint: #5b6470; --line: #d5dae0;
  --right: #2563a8; --wrong: #c2410c; --bar: #2563a8; --marked: #c2410c; --on: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e6e9ed; --faint: #9aa4b0;
  --line: #363d46; --right: #6ea8e6; --wrong: #f0905a; --bar: #6ea8e6; --marked: #f0905a; --on: #101316; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 75rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
a { color: var(--right); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt, figcaption, thead th { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; } th, td { padding: .25rem 1.5rem .25rem 0; text-align: left;
  border-bottom: 1px solid var(--line); font-weight: normal; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } figure { margin: 1.5rem 0 0; } figcaption { margin-bottom: .5rem; }
.verdict { border-left: 4px solid var(--wrong); padding: .5rem 2rem; list-style: none; }
b.right { color: var(--right); } b.wrong { color: var(--wrong); }
svg { display: block; }
svg text { fill: var(--ink); } svg .faint { fill: var(--faint); }
svg .grid { fill: none; stroke: var(--line); } svg line { stroke: var(--ink); }
svg .right { fill: var(--right); } svg .wrong { fill: var(--wrong); }
svg path { fill: none; stroke-width: 2; }
.pairs, .pair { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; } .pair { gap: .5rem; }
.pair img { width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; }
svg .bar { fill: var(--bar); } svg .marked { fill: var(--marked); } svg .on { fill: var(--on); }
"""
