"""What ``bcu benchmark`` says of a plan: what is missing and how long that takes, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcu_cli.cli import output

if TYPE_CHECKING:
    from bcu_cli.benchmark.cell import Cell, Plan
    from bcu_cli.benchmark.results import Results
    from bcu_cli.benchmark.table import TableOf


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is left of a plan.

    Args:
        plan: The plan.
        cells: All of its cells that were asked for.
        left: Those that are missing.
        networks: How many networks are to be trained for them.
        jobs: Commands at a time.
        unknown: How many cells and networks are unlike all that was measured.
        seconds: An estimate, where nothing is unknown.
    """

    plan: Plan
    cells: Sequence[Cell]
    left: Sequence[Cell]
    networks: int
    jobs: int
    unknown: int
    seconds: float | None


def look_ahead(plan: Plan, cells: Sequence[Cell], results: Results, jobs: int) -> Outlook:
    """Find out what is missing, and estimate how long it takes from what has been measured.

    Raises:
        UsageError: A cell was finished under other options.
    """
    from bcu_cli.benchmark.estimate import Times

    left = results.left(plan, cells)
    times = Times(results.cells.values())
    networks = {cell.model.name: cell.model for cell in left}.values()
    missing = [model for model in networks if not results.network(model).exists()]
    parts = [times.network(model) for model in missing] + [times.cell(cell) for cell in left]
    known = [seconds for seconds in parts if seconds is not None]
    unknown = len(parts) - len(known)
    # However many run at a time, a cell waits for its network.
    whole = max(sum(known) / jobs, max(known, default=0.0)) if not unknown else None
    return Outlook(
        plan=plan, cells=cells, left=left, networks=len(missing), jobs=jobs, unknown=unknown, seconds=whole
    )


def show_outlook(outlook: Outlook) -> None:
    """A row for cells that differ in target and seed alone, and the estimate."""
    from bcu_cli.benchmark.estimate import in_words

    missing = {cell.name for cell in outlook.left}
    rows: dict[tuple[str, ...], tuple[int, int]] = {}
    for cell in outlook.cells:
        place = tuple(str(v) for key, v in cell.coordinates.items() if key not in {"target", "seed"})
        count, lacking = rows.get(place, (0, 0))
        rows[place] = (count + 1, lacking + (cell.name in missing))
    header = ("data", "arch", "attack", "defense", "images", "max-images", "cells", "missing")
    output.table(outlook.plan.title, header, [(*place, *map(str, counts)) for place, counts in rows.items()])
    if outlook.seconds is not None:
        time = f"about {in_words(outlook.seconds)}, {outlook.jobs} at a time"
    else:
        time = f"not known: nothing like {outlook.unknown} of the cells and networks has been measured here"
    output.facts(
        [
            ("cells", f"{len(outlook.cells)}, {len(outlook.left)} of them missing"),
            ("networks to train", str(outlook.networks)),
            ("time", time),
        ]
    )


def outlook_document(outlook: Outlook) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "command": "benchmark",
        "plan": outlook.plan.folder,
        "cells": len(outlook.cells),
        "missing": [cell.name for cell in outlook.left],
        "networks_to_train": outlook.networks,
        "jobs": outlook.jobs,
        "estimated_seconds": outlook.seconds,
    }


def show_table(table: TableOf) -> None:
    """Rows, what is the same in all of them, and what has failed."""
    output.table(table.heading, *table.as_text())
    output.facts([*table.facts, *(("failed", f"{name}: {why}") for name, why in table.errors)])


def line(cell: dict[str, Any]) -> str:
    """A cell in one line of talk."""
    if error := cell["error"]:
        return f"{error['step']} failed: {error['message']}"
    parts = []
    for measure in ("acc", "asr"):
        before, after = (output.percent(cell[side][measure]["value"]) for side in ("before", "after"))
        parts.append(f"{measure.upper()} {before} -> {after}")
    return ", ".join(parts)
