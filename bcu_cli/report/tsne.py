"""Penultimate features as the paper's Figure 3 shows them, through matplotlib and scikit-learn's t-SNE."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from bcu_cli.checkpoints import atomic_write, sha256_of
from bcu_cli.report.plot import drawing
from bcu_cli.report.text import printable, shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from torch import Tensor

_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
"""Ten that are told apart with any colour vision (Petroff, Accessible Color Sequences, arXiv:2107.02270)."""
_TARGET, _GREY = "#000000", "#606060"
_GOLDEN = 0.618034
_COLUMNS = 5
_SIDE = 3.0
"""Of a panel, in inches."""
_TITLE_WIDTH = 36
"""Characters that fit above a panel."""
_MOST_BESIDE = 6
"""Columns of the legend."""
_PERPLEXITY = 30.0
_DPI = 150


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One model's features.

    Args:
        title: Its lines.
        clean: float32 ``[N, D]``, of clean images.
        classes: int64 ``[N]``, their true classes.
        triggered: float32 ``[M, D]``, of triggered images; M may be 0.
        origins: int64 ``[M]``, their true classes.
    """

    title: tuple[str, ...]
    clean: Tensor
    classes: Tensor
    triggered: Tensor
    origins: Tensor


@dataclass(frozen=True, kw_only=True)
class Legend:
    """What all panels share.

    Args:
        names: Of the classes, in the order of their numbers.
        target: The class that the trigger leads to; None where there is no one class.
        triggered: What the triggered images are called; empty where there are none.
    """

    names: tuple[str, ...]
    target: int | None
    triggered: str


def write(
    panels: Sequence[Panel], legend: Legend, path: Path, *, on_panel: Callable[[int, int], None] | None = None
) -> str:
    """Write a PNG with a panel for each model; returns the file's SHA-256.

    Args:
        panels: One or more.
        legend: Of all of them.
        path: Replaced only by a whole file.
        on_panel: Called with (panels done since the last call, panels in all).

    Raises:
        OutputError: It cannot be written.
    """
    columns = min(len(panels), _COLUMNS)
    rows = ceil(len(panels) / columns)
    handles = _handles(legend)
    beside = min(len(handles), 2 * columns, _MOST_BESIDE)
    size = (_SIDE * columns, (_SIDE + 0.5) * rows + 0.25 * ceil(len(handles) / beside))
    with atomic_write(path) as file, drawing(size, file, dpi=_DPI) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel, place in zip(panels, axes, strict=False):
            _draw(panel, legend, place)
            if on_panel:
                on_panel(1, len(panels))
        for place in axes[len(panels) :]:
            place.remove()
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=beside,
            frameon=False,
            fontsize=9,
            handletextpad=0.2,
        )
    return sha256_of(path)


def embed(features: Tensor) -> Any:
    """t-SNE (van der Maaten and Hinton 2008) in two dimensions: ``[N, D]`` to an array ``[N, 2]``.

    It begins from the principal components, and runs on one thread, whose sums are always in one order: the
    same features give the same places.
    """
    points = features.double().numpy()
    spread = np.ptp(points, axis=0).max()
    if spread == 0.0:
        return np.zeros((len(points), 2))  # all of them in one place
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 1)))
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    with threadpool_limits(limits=1):
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points / spread)


def _draw(panel: Panel, legend: Legend, axes: Axes) -> None:
    places = embed(torch.cat([panel.clean, panel.triggered]))
    clean, triggered = places[: len(panel.clean)], places[len(panel.clean) :]
    colours = np.array(_colours(legend))
    classes = panel.classes.numpy()
    own = colours[panel.origins.numpy()]
    axes.scatter(clean[:, 0], clean[:, 1], c=colours[classes], s=9, alpha=0.8, linewidths=0)
    axes.scatter(triggered[:, 0], triggered[:, 1], c=own, s=22, marker="+", linewidths=0.7)
    axes.set_title("\n".join(panel.title), fontsize=9)
    axes.set_box_aspect(1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.04)


def _colours(legend: Legend) -> list[str]:
    """Of each class; the target's is black."""
    count = len(legend.names)
    if count <= len(_COLOURS):
        colours = list(_COLOURS[:count])
    else:
        # Neighbours in the order of the names are often alike, so their colours are far apart; none is dark.
        places = [0.2 + 0.8 * (i * _GOLDEN % 1) for i in range(count)]
        colours = [to_hex(colour) for colour in mpl.colormaps["viridis"](places)]
    return [_TARGET if i == legend.target else colour for i, colour in enumerate(colours)]


def _handles(legend: Legend) -> list[Line2D]:
    """A handle for each class, where colours can be told apart; else for all, and for the target."""
    names, colours = [shortened(printable(name)) for name in legend.names], _colours(legend)
    few = len(names) <= len(_COLOURS)
    handles = [] if few else [_handle(f"clean images of {len(names)} classes, a colour each", colours[0])]
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        if i == legend.target:
            handles.append(_handle(f"{name} (target)", colour))
        elif few:
            handles.append(_handle(name, colour))
    if legend.triggered:
        handles.append(_handle(legend.triggered, _GREY, "+"))
    return handles


def _handle(label: str, colour: str, marker: str = "o") -> Line2D:
    return Line2D([], [], linestyle="none", marker=marker, color=colour, label=label, markersize=5)


def title(name: str, measures: str) -> tuple[str, ...]:
    """The lines above a panel: the name of a file, however long, and its measures."""
    return (*textwrap.wrap(printable(name), _TITLE_WIDTH), measures)
