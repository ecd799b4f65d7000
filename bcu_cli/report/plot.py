"""The drawings of a page as one image, by matplotlib, which is an optional dependency."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from math import nan
from typing import TYPE_CHECKING, BinaryIO

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bcu_cli.report.text import numbered, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

    from bcu_cli.report.page import Section

_INCHES_A_CLASS = 0.22
_LEAST_INCHES, _MOST_INCHES = 4.0, 45.0
_WIDTH_OF_BARS = 6.0
_DPI = 100
_MOST_PIXELS = 60_000
"""Most pixels of a side; Agg supports 65,535."""


@contextmanager
def drawing(size: tuple[float, float], file: BinaryIO, *, dpi: int = _DPI) -> Iterator[Figure]:
    """A figure of ``size`` (width and height in inches) that is written as PNG when the context ends.

    Text from files is not parsed as formulas, and characters that the font lacks are drawn as boxes.
    """
    with mpl.rc_context({"text.parse_math": False, "font.size": 8}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(
            file,
            format="png",
            dpi=min(dpi, _MOST_PIXELS / max(size)),
            bbox_inches="tight",  # long names may extend beyond the figure
            pad_inches=0.2,
            metadata={"Software": None},
        )


def draw(sections: Sequence[Section], file: BinaryIO) -> None:
    """Write a PNG with a confusion matrix and bars for each section."""
    heights = [
        min(max(_INCHES_A_CLASS * len(s.classes), _LEAST_INCHES), _MOST_INCHES) + 1.5 for s in sections
    ]
    with drawing((max(heights) + 1.5 + _WIDTH_OF_BARS, sum(heights)), file) as figure:
        axes = figure.subplots(
            len(sections),
            2,
            squeeze=False,
            height_ratios=heights,
            width_ratios=[max(heights), _WIDTH_OF_BARS],
        )
        for section, (left, right) in zip(sections, axes, strict=True):
            _matrix(left, section)
            _bars(right, section)


def _matrix(axes: Axes, section: Section) -> None:
    """Draw correct predictions in blue and wrong ones in orange, as shares of the true class."""
    count = len(section.classes)
    shares = np.zeros((count, count))
    for (true, answered), images in section.counts.items():
        shares[true, answered] = images
    shares /= shares.sum(axis=1, keepdims=True).clip(1)
    right = np.eye(count, dtype=bool)
    for chosen, colours in ((right, "Blues"), (~right, "Oranges")):
        shown = np.ma.masked_where(~chosen | (shares == 0), np.sqrt(shares))
        axes.imshow(shown, cmap=colours, vmin=-0.2, vmax=1.2)
    if count <= 60:
        for true, answered in np.argwhere(shares >= 0.005):
            share = shares[true, answered]
            colour = "white" if share > 0.45 else "black"
            axes.text(
                answered, true, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=7
            )
    axes.set_title(f"{printable(section.title)}\nconfusion matrix, percent of the true class")
    axes.set_xlabel("predicted")
    axes.set_yticks(range(count), _labels(section.classes))
    axes.set_xticks(range(count), [str(i) for i in range(count)], rotation=90 if count > 12 else 0)


def _bars(axes: Axes, section: Section) -> None:
    shares = [bar.share["value"] if bar.share else nan for bar in section.bars]
    colours = ["tab:orange" if bar.marked else "tab:blue" for bar in section.bars]
    axes.barh(range(len(shares)), [100 * share for share in shares], color=colours)
    for i, bar in enumerate(section.bars):
        text = f"{100 * bar.share['value']:.1f}" if bar.share else "no images"
        axes.text(102, i, text, va="center")
    axes.set_xlim(0, 116)
    axes.set_xticks(range(0, 101, 20))
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_yticks(range(len(shares)), _labels([bar.name for bar in section.bars]))
    axes.set_title(f"{printable(section.bars_title)}, percent")


def _labels(names: Sequence[str]) -> list[str]:
    return [numbered(printable(name), i) for i, name in enumerate(names)]
