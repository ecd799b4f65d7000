"""The files of a benchmark: one JSON file for each cell, and the networks that cells start from.

Tables need only ``cells/PLAN.SIZE/CELL.json``. ``models`` and ``pictures`` can be recreated.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bcu_cli import __version__
from bcu_cli.benchmark.cell import fingerprint
from bcu_cli.checkpoints import sha256_of
from bcu_cli.errors import CheckpointError, UsageError
from bcu_cli.report import json_file, provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bcu_cli.benchmark.cell import Backdoored, Cell, Plan

CELL_FORMAT = 1
_NOT_READABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)
_KEPT = ("acc", "asr", "ra")
_NEEDED = ["plan", "position", "cell", "decides", "fingerprint", "before", "after", "seconds", "error"]
"""Keys that every cell has."""


class Results:
    """The content of a folder of results.

    Args:
        folder: The folder, which need not exist yet.

    Raises:
        UsageError: The folder is a file, or a file among the cells is not a cell.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file", "name a folder for the results, which need not exist yet")
        self.folder = folder
        self.cells = read_cells(folder)
        """Cells by the names of folder and file, like ``table1.smoke/cifar10-…``."""
        self._finished = {cell["fingerprint"]: cell for cell in self.cells.values() if not cell["error"]}

    def cell(self, plan: Plan, cell: Cell) -> dict[str, Any]:
        """The content of an existing cell's file."""
        return self.cells[_key(plan, cell)]

    def left(self, plan: Plan, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that neither this plan nor another one has finished.

        Raises:
            UsageError: A cell of the plan was finished with other options, whether it is asked for or not:
                it would stand in one row with the others.
        """
        for cell in plan.cells:
            mine = self.cells.get(_key(plan, cell))
            if mine and not mine["error"] and mine["fingerprint"] != fingerprint(cell.decides):
                what = _difference(mine["decides"], cell.decides)
                raise UsageError(
                    f"{self.folder} holds the cell {_key(plan, cell)}, made with {what}",
                    "name a new folder with --out, or remove the cells that were made otherwise",
                )
        return [cell for cell in cells if fingerprint(cell.decides) not in self._finished]

    def refuse_other_images(self, plan: Plan, digests: Callable[[Cell], dict[str, str]]) -> None:
        """Refuse images that are not those which the finished cells of a plan were measured on.

        Args:
            plan: The plan.
            digests: Gives the digests of a cell's images, as :meth:`finish` keeps them; none of images that
                no missing cell needs.

        Raises:
            UsageError: A cell was measured on others.
        """
        for cell in plan.cells:
            mine = self.cells.get(_key(plan, cell))
            kept = (mine["made"] or {}).get("image_digests", {}) if mine else {}
            if any(kept[name] != digest for name, digest in digests(cell).items() if name in kept):
                raise UsageError(
                    f"{self.folder} holds the cell {_key(plan, cell)}, measured on other images",
                    "name a new folder with --out, or give the same images",
                )

    def adopt(self, plan: Plan, cells: Sequence[Cell]) -> int:
        """Copy cells that another plan has finished; returns their number."""
        count = 0
        for cell in cells:
            theirs = self._finished.get(fingerprint(cell.decides))
            mine = self.cells.get(_key(plan, cell))
            if theirs and (mine is None or mine["error"]):
                self._write(
                    plan, cell, {key: theirs[key] for key in ("before", "after", "seconds", "made", "error")}
                )
                count += 1
        return count

    def finish(
        self,
        plan: Plan,
        cell: Cell,
        reports: dict[str, Any],
        seconds: dict[str, float],
        digests: dict[str, str],
    ) -> None:
        """Write the file of a finished cell.

        Args:
            plan: The plan of the cell.
            cell: The cell.
            reports: Reports of ``attack``, ``cleanse`` and ``evaluate``.
            seconds: Seconds of each command.
            digests: Digests of the cell's images.

        Raises:
            CheckpointError: A report is incomplete.
        """
        try:
            before, after = (
                {key: model.get(key) for key in _KEPT} for model in reports["evaluate"]["models"]
            )
            made = {
                "versions": reports["cleanse"]["versions"],
                "device": reports["cleanse"]["device"],
                "original": reports["attack"]["outputs"]["model"]["sha256"],
                "images": reports["cleanse"]["images"]["used"],
                "image_digests": digests,
                "verdict": reports["cleanse"].get("verdict"),
            }
        except _NOT_READABLE as error:
            raise CheckpointError("its reports are incomplete", "report this") from error
        content = {"before": before, "after": after, "seconds": seconds, "made": made, "error": None}
        self._write(plan, cell, content)

    def fail(self, plan: Plan, cell: Cell, step: str, message: str, hint: str) -> None:
        """Record that a step of a cell failed."""
        error = {"step": step, "message": message, "hint": hint}
        self._write(plan, cell, {"before": None, "after": None, "seconds": {}, "made": None, "error": error})

    def network(self, model: Backdoored) -> Path:
        """The file of a backdoored network; its trigger and its report lie beside it."""
        return self.folder / "models" / f"{model.name}.safetensors"

    def cleansed(self, cell: Cell) -> Path:
        """The file of a cell's cleansed network, which exists until it is measured."""
        return self.folder / "models" / f"{cell.name}-{fingerprint(cell.decides)[:8]}.clean.safetensors"

    def _write(self, plan: Plan, cell: Cell, content: dict[str, Any]) -> None:
        path = self.folder / "cells" / plan.folder / f"{cell.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {key: value for key, value in asdict(plan).items() if key != "cells"}
        whole = {
            "schema_version": 1,
            "cell_format": CELL_FORMAT,
            "bcu": __version__,
            "plan": about,
            "position": plan.cells.index(cell),
            "cell": cell.coordinates,
            "decides": cell.decides,
            "fingerprint": fingerprint(cell.decides),
            **content,
        }
        json_file.write(path, whole)
        self.cells[_key(plan, cell)] = whole
        if not whole["error"]:
            self._finished[whole["fingerprint"]] = whole


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """All cells of a folder of results, by folder and name.

    Raises:
        UsageError: A file among them is not a cell.
    """
    cells = {}
    for path in sorted((folder / "cells").glob("*/*.json")):
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))
            if cell["cell_format"] != CELL_FORMAT:
                raise ValueError
            for key in _NEEDED:
                cell[key]
        except _NOT_READABLE as error:
            raise UsageError(f"{path} is no cell of this version of bcu", "remove it") from error
        cells[f"{path.parent.name}/{path.stem}"] = cell
    return cells


def keep(model: Path, text: str, decides: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Save the report of a command beside the file that it wrote, so that the command is not run again.

    Args:
        model: The file.
        text: The report as JSON.
        decides: The values that determine the file.
        seconds: Seconds that the command took.

    Raises:
        CheckpointError: The text is not a report on that file.
    """
    try:
        report: dict[str, Any] = json.loads(text)
        report["benchmark"] = {"fingerprint": fingerprint(decides), "seconds": seconds}
    except (ValueError, TypeError) as error:
        raise CheckpointError("it ended without a report", "run the same command again") from error
    json_file.write(_report(model), report)
    return kept(model, decides)


def kept(model: Path, decides: dict[str, Any]) -> dict[str, Any]:
    """The report that ``keep`` saved, if it and the file are intact.

    Raises:
        CheckpointError: They are damaged or missing.
    """
    path = _report(model)
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        written = report["outputs"] if "outputs" in report else {"model": report["output"]}
        intact = report["benchmark"]["fingerprint"] == fingerprint(decides) and all(
            sha256_of(model.with_name(_base(one["path"]))) == one["sha256"] for one in written.values()
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path.name}") from error
    except _NOT_READABLE as error:
        raise CheckpointError(f"{path.name} is damaged") from error
    if not intact:
        raise CheckpointError(f"{model.name} is damaged, or of other options")
    return report


def remove(model: Path) -> None:
    """Remove a file, its saved report and the statement of its provenance."""
    _report(model).unlink(missing_ok=True)
    provenance.path_beside(model).unlink(missing_ok=True)
    model.unlink(missing_ok=True)


def _report(model: Path) -> Path:
    return model.with_suffix(".json")


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _key(plan: Plan, cell: Cell) -> str:
    return f"{plan.folder}/{cell.name}"


def _difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    for key in theirs | mine:
        one, other = theirs.get(key), mine.get(key)
        if one != other and isinstance(one, dict) and isinstance(other, dict):
            return _difference(one, other)
        if one != other:
            return f"{key.replace('_', '-')} {one}, not {other}"
    return "the same"
