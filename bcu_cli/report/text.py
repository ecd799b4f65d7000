"""Text from files (class names, paths) and measures, made fit for a terminal, a page or a log."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_NAME = 22


def printable(text: str) -> str:
    r"""Text from outside that can do nothing to a terminal, a page or a log: the one place that sees to it.

    Whatever does not print, such as control characters, line breaks, characters that turn the direction of
    writing and halves of characters, stands there as an escape such as ``\x1b``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escaped(text: str) -> str:
    """Text for HTML and SVG, in elements and in attributes."""
    return html.escape(printable(text))


def shortened(name: str) -> str:
    """A name that fits beside a drawing."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def numbered(name: str, number: int) -> str:
    """The name of a class beside a drawing, with its index unless that is what it says."""
    return name if name.isdecimal() and int(name) == number else f"{shortened(name)} · {number}"


def percent(share: float) -> str:
    """A share in [0, 1]."""
    return f"{100 * share:.2f} %"


def counted(share: dict[str, Any] | None) -> str:
    """A measure as reports hold it, with its counts; None is one without images."""
    return f"{percent(share['value'])} ({share['hits']} of {share['of']})" if share else "no images"


def interval(share: dict[str, Any]) -> str:
    """The interval of a measure."""
    low, high = share["interval95"]
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def text_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text, whose columns are as wide as their widest cell.

    Args:
        title: Stands above it.
        header: Names of the columns.
        rows: The cells, as many a row as there are columns.
    """
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    drawn = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([printable(title), drawn[0], "  ".join("-" * width for width in widths), *drawn[1:]])


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
