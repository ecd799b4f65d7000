"""Drawings of a page as inline SVG, coloured by the style of the page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from bcu_cli.report.text import counted, escaped, numbered, percent, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bcu_cli.report.page import Bar

NAME_WIDTH = 180
"""Width of the class names at the left, in pixels."""
BAR_WIDTH = 320
_BAR_HEIGHT = 18
_TEXT_WIDTH = 200
_LINE = 4
"""Distance from the middle of a line of text to its baseline, in pixels."""


def heat_map(classes: Sequence[str], counts: Mapping[tuple[int, int], int]) -> str:
    """A confusion matrix: the darker a cell, the larger its share of the row; empty cells are not drawn.

    Args:
        classes: Class names in label order.
        counts: Images by (true class, predicted class).
    """
    number = len(classes)
    cell = 36 if number <= 12 else 22 if number <= 60 else 10
    size, top = number * cell, 30
    totals: Counter[int] = Counter()
    for (true, _), count in counts.items():
        totals[true] += count
    parts = [f'<rect class="grid" x="{NAME_WIDTH}" y="{top}" width="{size}" height="{size}"/>']
    for i, name in enumerate(classes):
        middle = cell * i + cell / 2
        parts += [
            _text(NAME_WIDTH - 6, top + middle, numbered(name, i), "end", name),
            _index(i, NAME_WIDTH + middle, top - 6, cell),
        ]
    for (true, answered), count in sorted(counts.items()):
        x, y, share = NAME_WIDTH + cell * answered, top + cell * true, count / totals[true]
        what = f"{classes[true]} predicted as {classes[answered]}: {count} of {totals[true]}"
        kind, opacity = "right" if true == answered else "wrong", 0.1 + 0.9 * sqrt(share)
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{cell}" height="{cell}" '
            f'fill-opacity="{opacity:.2f}"><title>{escaped(what)}</title></rect>'
        )
        if cell >= 22 and share >= 0.005:
            shown = "on" if share > 0.45 else ""
            parts.append(_text(x + cell / 2, y + cell / 2, f"{100 * share:.0f}", "middle", what, shown))
    return _svg(NAME_WIDTH + size + 20, top + size + 10, "Confusion matrix", parts, small=cell < 14)


def bars(rows: Sequence[Bar], label: str) -> str:
    """Horizontal bars from 0 to 100 %, each with a line for the 95 % interval and its value."""
    parts = []
    for i, bar in enumerate(rows):
        top = i * _BAR_HEIGHT
        middle = top + _BAR_HEIGHT / 2
        parts.append(_text(NAME_WIDTH - 6, middle, numbered(bar.name, i), "end", bar.name))
        if bar.share:
            low, high = (NAME_WIDTH + BAR_WIDTH * end for end in bar.share["interval95"])
            kind, length = "marked" if bar.marked else "bar", BAR_WIDTH * bar.share["value"]
            parts.append(
                f'<rect class="{kind}" x="{NAME_WIDTH}" y="{top + 3}" width="{length:.1f}" '
                f'height="{_BAR_HEIGHT - 6}"/>'
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
            )
        parts.append(_text(NAME_WIDTH + BAR_WIDTH + 10, middle, counted(bar.share), "start"))
    return _svg(NAME_WIDTH + BAR_WIDTH + _TEXT_WIDTH, len(rows) * _BAR_HEIGHT + 4, label, parts)


def curves(numbers: Sequence[int], lines: Sequence[tuple[str, Sequence[float | None]]], label: str) -> str:
    """A line chart of shares from 0 to 100 %; the name of a line stands at its end.

    Args:
        numbers: Values of the x axis in ascending order, drawn evenly spaced.
        lines: Names, and a share in [0, 1] for each number; None where there is none.
        label: Description of the shares.
    """
    height, step, left, top = 220, 110, 50, 14
    width = step * max(1, len(numbers) - 1)
    parts = [f'<rect class="grid" x="{left}" y="{top}" width="{width}" height="{height}"/>']
    parts += [_text(left - 6, top + height * (1 - s), f"{100 * s:.0f} %", "end") for s in (0.0, 0.5, 1.0)]
    parts += [_text(left + step * i, top + height + 14, f"{x:,}", "middle") for i, x in enumerate(numbers)]
    ends = []
    for i, (name, shares) in enumerate(lines):
        points = [
            (left + step * j, top + height * (1 - share))
            for j, share in enumerate(shares)
            if share is not None
        ]
        if not points:
            continue
        colour = f"hsl({360 * i // len(lines)} 60% 50%)"
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
        shown = ", ".join("–" if share is None else f"{100 * share:.2f} %" for share in shares)
        parts.append(
            f'<g><title>{escaped(f"{name}: {shown}")}</title><path d="{path}" stroke="{colour}"/>{dots}</g>'
        )
        ends.append((points[-1][1], name, colour))
    lowest = 0.0
    for y, name, colour in sorted(ends):
        lowest = max(lowest + 12, y)  # keeps names from overlapping
        parts.append(f'<rect x="{left + width + 10}" y="{lowest - 4}" width="8" height="8" fill="{colour}"/>')
        parts.append(_text(left + width + 22, lowest, shortened(name), "start", name))
    return _svg(left + width + NAME_WIDTH, max(top + height + 24, lowest + 12), label, parts)


def values(rows: Sequence[tuple[str, float, bool]], lines: Sequence[float], label: str) -> str:
    """Horizontal bars from 0, narrow enough for a telephone, with lines at thresholds.

    Args:
        rows: Name, value (0 or more) and whether to highlight it, of each bar.
        lines: The thresholds.
        label: What is drawn.
    """
    left, width, height = 150, 150, len(rows) * _BAR_HEIGHT
    scale = width / max(*lines, *(value for _, value, _ in rows))
    parts = []
    for i, (name, value, marked) in enumerate(rows):
        top, middle = i * _BAR_HEIGHT, (i + 0.5) * _BAR_HEIGHT
        kind, length = "marked" if marked else "bar", scale * value
        size = f'width="{length:.1f}" height="{_BAR_HEIGHT - 6}"'
        parts.append(_text(left - 6, middle, name, "end"))
        parts.append(f'<rect class="{kind}" x="{left}" y="{top + 3}" {size}/>')
        parts.append(_text(left + width + 8, middle, f"{value:.2f}", "start"))
    for line in lines:
        x = left + scale * line
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    return _svg(left + width + 50, height + 4, label, parts)


def before_and_after(rows: Sequence[tuple[str, dict[str, Any], dict[str, Any]]], label: str) -> str:
    """Two bars a row from 0 to 100 %, narrow enough for a telephone, each with its 95 % interval and counts.

    Args:
        rows: Name, and the measures of a report before and after.
        label: What is drawn.
    """
    width, height = 180, 44
    parts = []
    for i, (name, *shares) in enumerate(rows):
        parts.append(_text(0, i * height + 8, name, "start"))
        for share, kind, top in zip(shares, ("marked", "bar"), (15, 27), strict=True):
            y, size = i * height + top, f'width="{width * share["value"]:.1f}" height="10"'
            low, high = (width * end for end in share["interval95"])
            parts += [
                f'<rect class="grid" x="0" y="{y}" width="{width}" height="10"/>',
                f'<rect class="{kind}" x="0" y="{y}" {size}/>',
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 5}" y2="{y + 5}"/>',
                _text(width + 8, y + 5, counted(share), "start"),
            ]
    return _svg(width + 160, len(rows) * height, label, parts)


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A measured share in [0, 1], beside the paper's.

    Args:
        share: The measured share; None where there is none.
        deviation: Its standard deviation over networks; None for a single network.
        paper: The paper's share; None where there is none.
    """

    share: float | None
    deviation: float | None
    paper: float | None


def dots(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Dot]]], label: str) -> str:
    """Shares from 0 to 100 % as dots, one axis for each column, narrow enough for a telephone.

    Args:
        columns: Names of the measures.
        rows: Name, and a dot for each column.
        label: What is drawn.
    """
    left, width, gap, top = 84, 100, 36, 30
    height = top + len(rows) * _BAR_HEIGHT
    parts = [
        _text(left - 8, top + (i + 0.5) * _BAR_HEIGHT, name, "end", name) for i, (name, _) in enumerate(rows)
    ]
    for column, name in enumerate(columns):
        start = left + column * (width + gap)
        parts.append(_text(start + width / 2, 6, name, "middle"))
        parts.append(f'<rect class="grid" x="{start}" y="{top}" width="{width}" height="{height - top}"/>')
        parts += [
            _text(start + width * tick / 100, top - 8, str(tick), "middle", kind="faint")
            for tick in (0, 50, 100)
        ]
        for i, (_, shown) in enumerate(rows):
            parts.append(_dot(shown[column], start, width, top + (i + 0.5) * _BAR_HEIGHT))
    return _svg(left + len(columns) * (width + gap), height + 6, label, parts)


def _dot(dot: Dot, start: float, width: float, y: float) -> str:
    """The paper's share as a hollow circle, and over it the measured one with its deviation."""
    parts, words = [], []
    if dot.paper is not None:
        parts.append(f'<circle class="paper" cx="{start + width * dot.paper:.1f}" cy="{y}" r="5"/>')
        words.append(f"the paper {percent(dot.paper)}")
    if dot.share is not None:
        spread = dot.deviation or 0.0
        low, high = (start + width * min(max(dot.share + side, 0.0), 1.0) for side in (-spread, spread))
        if spread:
            parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="bar" cx="{start + width * dot.share:.1f}" cy="{y}" r="3.5"/>')
        words.insert(0, f"measured {percent(dot.share)}")
    return f"<g><title>{escaped(', '.join(words))}</title>{''.join(parts)}</g>"


def _index(number: int, x: float, y: float, cell: int) -> str:
    """The index of a class above its column; vertical where columns are narrow."""
    turn = f' transform="rotate(-90 {x} {y})"' if cell < 14 else ""
    anchor = "start" if turn else "middle"
    return f'<text class="faint" x="{x}" y="{y}" text-anchor="{anchor}"{turn}>{number}</text>'


def _text(x: float, middle: float, text: str, anchor: str, title: str = "", kind: str = "") -> str:
    shown = f"<title>{escaped(title)}</title>" if title else ""
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x}" y="{middle + _LINE}" text-anchor="{anchor}">{shown}{escaped(text)}</text>'


def _svg(width: float, height: float, label: str, parts: Sequence[str], *, small: bool = False) -> str:
    return (
        f'<svg role="img" aria-label="{escaped(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-size="{8 if small else 11}">{"".join(parts)}</svg>'
    )
