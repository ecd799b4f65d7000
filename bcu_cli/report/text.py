"""Formatting of text from files (class names, paths) and of measures, for terminals, pages and logs."""

from __future__ import annotations

import html
import os
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LONGEST_NAME = 22
_MEASURED_SIDE = 32
"""Largest side of the images of the networks that a scan's error rates were measured on, in pixels."""


def printable(text: str) -> str:
    r"""Neutralise untrusted text for a terminal, a page or a log.

    Characters that do not print become escapes such as ``\x1b``: control characters, line breaks, changes of
    the writing direction, and surrogates.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escaped(text: str) -> str:
    """Escape text for HTML and SVG, in elements and in attributes."""
    return html.escape(printable(text))


def architecture_name(name: str) -> str:
    """The name of an architecture without the folders of a file that it names.

    ``transformers:cache/config.json`` becomes ``transformers:config.json``.
    """
    library, colon, place = name.partition(":")
    head = f"{library}:" if colon and "/" in place and "/" not in library else ""
    return head + name.rpartition("/")[2]


def as_uri(path: str) -> str:
    """A path as a URI, relative where the path is relative, as code-scanning services expect."""
    quoted = quote(os.fsencode(PurePath(path).as_posix()))
    return f"file://{quoted}" if PurePath(path).is_absolute() else quoted


def shortened(name: str) -> str:
    """A name, cut to the length that fits beside a drawing."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def numbered(name: str, number: int) -> str:
    """The name of a class with its index, unless the name is the index."""
    return name if name.isdecimal() and int(name) == number else f"{shortened(name)} · {number}"


def suspected_class(scan: Mapping[str, Any]) -> str:
    """The most suspicious class of a scan in words, with its name where that is known."""
    index, names = scan["class"], scan["classes"]
    return f"class {numbered(names[index], index) if names else index}"


def searched_of_all(scan: Mapping[str, Any]) -> str:
    """How many classes a scan searched, in words; empty if it searched all."""
    searched, count = len(scan["searched"]), len(scan["suspicions"])
    return "" if searched == count else f"searched {searched} of {count:,} classes"


def rates_of_others(scan: Mapping[str, Any]) -> str:
    """What the error rates of a scan do not cover, in words; empty if they hold for this network."""
    larger = max(scan["model"]["preprocessing"]["input_size"][1:]) > _MEASURED_SIDE
    if not larger and not searched_of_all(scan):
        return "were measured before the detector of sinusoids was added" if scan["images"] else ""
    return f"are of small networks for {_MEASURED_SIDE}x{_MEASURED_SIDE} images; not known for one like this"


def percent(share: float) -> str:
    """A share in [0, 1], in percent."""
    return f"{100 * share:.2f} %"


def counted(share: dict[str, Any] | None) -> str:
    """A measure of a report with its counts; None is a measure without images."""
    return f"{percent(share['value'])} ({share['hits']} of {share['of']})" if share else "no images"


def interval(share: dict[str, Any]) -> str:
    """The 95 % interval of a measure, in percent."""
    low, high = share["interval95"]
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def text_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text.

    Args:
        title: Title above the table.
        header: Names of the columns.
        rows: Cells, one for each column.
    """
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    drawn = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([printable(title), drawn[0], "  ".join("-" * width for width in widths), *drawn[1:]])


def size(count: float) -> str:
    """A number of bytes with a unit."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
