"""Penultimate features drawn as in the paper's Figure 3, by scikit-learn's t-SNE and matplotlib."""

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
"""Ten colours for any colour vision (Petroff, Accessible Color Sequences, arXiv:2107.02270)."""
_TARGET, _GREY = "#000000", "#606060"
_GOLDEN = 0.618034
_COLUMNS = 5
_SIDE = 3.0
"""Side of a panel, in inches."""
_TITLE_WIDTH = 36
"""Characters that fit above a panel."""
_MOST_BESIDE = 6
"""Columns of the legend."""
_PERPLEXITY = 30.0
_DPI = 150


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Features of one model.

    Args:
        title: Lines of the title.
        clean: Features of clean images, float32 ``[N, D]``.
        classes: True classes of the clean images, int64 ``[N]``.
        triggered: Features of triggered images, float32 ``[M, D]``; M may be 0.
        origins: True classes of the triggered images, int64 ``[M]``.
    """

    title: tuple[str, ...]
    clean: Tensor
    classes: Tensor
    triggered: Tensor
    origins: Tensor


@dataclass(frozen=True, kw_only=True)
class Legend:
    """The legend of all panels.

    Args:
        names: Class names in label order.
        target: Target class of the trigger; None where there is no single one.
        triggered: Label of the triggered images; empty where there are none.
    """

    names: tuple[str, ...]
    target: int | None
    triggered: str


def write(
    panels: Sequence[Panel], legend: Legend, path: Path, *, on_panel: Callable[[int, int], None] | None = None
) -> str:
    """Write a PNG with a panel for each model; returns the file's SHA-256.

    Args:
        panels: One or more panels.
        legend: The legend of all panels.
        path: The file to write; it is replaced atomically.
        on_panel: Called with (panels done since the last call, panels in all).

    Raises:
        OutputError: The file cannot be written.
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

    It starts from the principal components and runs on one thread, so the same features give the same result.
    """
    points = features.double().numpy()
    spread = np.ptp(points, axis=0).max()
    if spread == 0.0:
        return np.zeros((len(points), 2))  # all points coincide
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
    origins = colours[panel.origins.numpy()]
    axes.scatter(clean[:, 0], clean[:, 1], c=colours[classes], s=9, alpha=0.8, linewidths=0)
    axes.scatter(triggered[:, 0], triggered[:, 1], c=origins, s=22, marker="+", linewidths=0.7)
    axes.set_title("\n".join(panel.title), fontsize=9)
    axes.set_box_aspect(1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.04)


def _colours(legend: Legend) -> list[str]:
    """The colour of each class; the target's is black."""
    count = len(legend.names)
    if count <= len(_COLOURS):
        colours = list(_COLOURS[:count])
    else:
        # Neighbours in the order of the names are often alike, so their colours are far apart; none is dark.
        places = [0.2 + 0.8 * (i * _GOLDEN % 1) for i in range(count)]
        colours = [to_hex(colour) for colour in mpl.colormaps["viridis"](places)]
    return [_TARGET if i == legend.target else colour for i, colour in enumerate(colours)]


def _handles(legend: Legend) -> list[Line2D]:
    """Legend handles: one for each class if there are few, else one for all and one for the target."""
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
    """The title lines of a panel: the wrapped name of a file, and its measures."""
    return (*textwrap.wrap(printable(name), _TITLE_WIDTH), measures)
