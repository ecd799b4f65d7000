"""An evaluation as a page: a self-contained HTML file, or an image (``report/plot.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints import atomic_write, check_writable, sha256_of
from bcu_cli.errors import UsageError
from bcu_cli.report import optional, page_parts, svg
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
    body = [
        f"<h1>{escaped(page.title)}</h1>",
        page_parts.verdict(page.verdict),
        page_parts.facts(page.facts),
        f"<nav><ul>{links}</ul></nav>" if len(page.sections) > 1 else "",
        *(_section(section, i) for i, section in enumerate(page.sections)),
    ]
    return page_parts.framed(page.title, body)


def _section(section: Section, number: int) -> str:
    measures = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{percent(share["value"])}</td>'
        f"<td>{share['hits']} of {share['of']}</td><td>{interval(share)}</td></tr>"
        for name, share in section.measures
    )
    return f"""<section id="s{number}">
<h2>{escaped(section.title)}</h2>
{page_parts.facts(section.facts)}
<div class="wide"><table>
<thead><tr><th scope="col">measure</th><th scope="col">value</th><th scope="col">images</th>
<th scope="col">95 % interval</th></tr></thead>
<tbody>{measures}</tbody></table></div>
<figure><figcaption>Confusion matrix: rows are true classes, columns predicted ones, cells percent of the row.
<b class="right">Correct</b> and <b class="wrong">wrong</b> predictions.</figcaption>
<div class="wide">{svg.heat_map(section.classes, section.counts)}</div></figure>
{page_parts.figure(section.bars_title, svg.bars(section.bars, section.bars_title))}
</section>"""
