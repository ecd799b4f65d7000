"""What all pages share: the frame with its style, facts, lists, and images with captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcu_cli.checkpoints import check_writable
from bcu_cli.errors import UsageError
from bcu_cli.report.text import escaped, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


def check(path: Path, *, inputs: Iterable[Path]) -> None:
    """Check before long work that an HTML page can be written.

    Raises:
        UsageError: The suffix is not ``.html``.
        OutputError: The path is an input, or cannot be written.
    """
    if path.suffix != ".html":
        raise UsageError(f"--page {path} is no .html file", "name a file with this ending")
    check_writable(path, inputs=inputs)


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


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values as an HTML list."""
    rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in pairs)
    return f"<dl>{rows}</dl>" if rows else ""


def listed(title: str, lines: Iterable[str]) -> str:
    """A heading and a list; empty where there are no lines."""
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return f"<h3>{escaped(title)}</h3><ul>{items}</ul>" if items else ""


def verdict(lines: Iterable[str], *, good: bool = False) -> str:
    """The lines of a verdict, highlighted by whether it is good; empty where there are none."""
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    kind = "verdict good" if good else "verdict"
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def figure(caption: str, drawing: str) -> str:
    """A drawing (HTML or SVG) below its caption (text)."""
    return f'<figure><figcaption>{escaped(caption)}</figcaption><div class="wide">{drawing}</div></figure>'


def images(caption: str, groups: Iterable[Iterable[tuple[str, str]]]) -> str:
    """Groups of images that belong together, below a caption.

    Args:
        caption: The caption, as text.
        groups: For each group, the ``data:`` URI and the caption of each image.
    """
    shown = "".join(f'<div class="group">{"".join(map(_image, group))}</div>' for group in groups)
    return f'<figure><figcaption>{escaped(caption)}</figcaption><div class="groups">{shown}</div></figure>'


def _image(one: tuple[str, str]) -> str:
    uri, caption = one
    return f'<div><img src="{escaped(uri)}" alt="{escaped(caption)}"/><br/>{escaped(caption)}</div>'


def class_name(classes: Sequence[str], index: int) -> str:
    """The name of a class with its index; only the index where the names are not known."""
    return numbered(classes[index], index) if classes else f"class {index}"


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
@media (max-width: 40rem) { dl { display: block; } dt { margin-top: .5rem; } }
.wide { overflow-x: auto; } figure { margin: 1.5rem 0 0; } figcaption { margin-bottom: .5rem; }
.verdict { border-left: 4px solid var(--wrong); padding: .5rem 1rem; list-style: none; }
.verdict.good { border-color: var(--right); }
b.right { color: var(--right); } b.wrong { color: var(--wrong); }
svg { display: block; }
svg text { fill: var(--ink); } svg .faint { fill: var(--faint); }
svg .grid { fill: none; stroke: var(--line); } svg line { stroke: var(--ink); }
svg .paper { fill: var(--page); stroke: var(--marked); stroke-width: 1.5; }
svg .right { fill: var(--right); } svg .wrong { fill: var(--wrong); }
svg path { fill: none; stroke-width: 2; }
.groups { display: flex; flex-wrap: wrap; gap: 1rem 2rem; } .group { display: flex; gap: .5rem; }
.group > div { width: 9rem; line-height: 1.3; font-size: .87rem; overflow-wrap: anywhere; }
.group img { width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; }
svg .bar { fill: var(--bar); } svg .marked { fill: var(--marked); } svg .on { fill: var(--on); }
"""
