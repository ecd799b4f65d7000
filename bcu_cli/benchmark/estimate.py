"""Estimates of the time of cells, from cells that were measured."""

from __future__ import annotations

import json
from collections import defaultdict
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bcu_cli.benchmark.cell import Backdoored, Cell


class Times:
    """Times of measured networks and cells.

    Args:
        cells: Contents of the cells' files.
    """

    def __init__(self, cells: Iterable[dict[str, Any]]) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)
        for cell in cells:
            if cell["error"]:
                continue
            seconds = cell["seconds"]
            for kind in _kinds_of_network(cell["decides"]["model"]):
                self._seconds[kind].append(seconds["attack"])
            for kind in _kinds_of_cell(cell["decides"]):
                self._seconds[kind].append(seconds["cleanse"] + seconds["evaluate"])

    def network(self, model: Backdoored) -> float | None:
        """Estimated seconds of a training, from the most similar measured networks; None without any."""
        return self._nearest(_kinds_of_network(_plain(model.decides)))

    def cell(self, cell: Cell) -> float | None:
        """Estimated seconds of cleansing and measuring a cell; None without similar measured cells."""
        return self._nearest(_kinds_of_cell(_plain(cell.decides)))

    def _nearest(self, kinds: Iterator[str]) -> float | None:
        return next((mean(self._seconds[kind]) for kind in kinds if kind in self._seconds), None)


def _kinds_of_network(decides: dict[str, Any]) -> Iterator[str]:
    """Keys of similar networks, from the most specific to the broadest."""
    alike = {key: value for key, value in decides.items() if key not in {"target", "seed"}}
    yield _kind("network", alike)
    yield _kind("network", decides["arch"], decides["data"], decides["options"].get("epochs"))


def _kinds_of_cell(decides: dict[str, Any]) -> Iterator[str]:
    model = decides["model"]
    arch, data = model["arch"], model["data"]
    yield _kind("cell", arch, data, decides["cleanse"], decides["max_images"])
    yield _kind("cell", arch, data, decides["cleanse"].get("epochs"), decides["max_images"])
    yield _kind("cell", arch, data, decides["cleanse"].get("epochs"))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _kind(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)
