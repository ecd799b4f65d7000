"""The output of ``bcu benchmark``: missing cells with an estimate of time, and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcu_cli.benchmark import verdicts
from bcu_cli.cli import output
from bcu_cli.events import duration

if TYPE_CHECKING:
    from bcu_cli.benchmark.table import TableOf
    from bcu_cli.workflows.benchmark import Outlook


def show_outlook(outlook: Outlook) -> None:
    """Print a row for cells that differ only in target and seed, and the estimate."""
    missing = {cell.name for cell in outlook.left}
    rows: dict[tuple[str, ...], tuple[int, int]] = {}
    for cell in outlook.cells:
        place = tuple(str(v) for key, v in cell.coordinates.items() if key not in {"target", "seed"})
        count, lacking = rows.get(place, (0, 0))
        rows[place] = (count + 1, lacking + (cell.name in missing))
    header = ("data", "arch", "attack", "defense", "images", "max-images", "cells", "missing")
    output.table(outlook.plan.title, header, [(*place, *map(str, counts)) for place, counts in rows.items()])
    if outlook.seconds is not None:
        time = f"about {duration(outlook.seconds)}, {outlook.jobs} at a time"
    else:
        time = f"unknown: nothing similar to {outlook.unknown} of the cells and networks was measured here"
    output.facts(
        [
            ("cells", f"{len(outlook.cells)}, {len(outlook.left)} of them missing"),
            ("networks to train", str(outlook.networks)),
            ("time", time),
        ]
    )


def show_table(table: TableOf) -> None:
    """Print a table, the values that all rows share, and the failed cells."""
    output.table(table.heading, *table.as_text())
    if table.verdicts:
        output.table("Networks by verdict, and by the ASR that was left", *verdicts.lines(table.verdicts))
    output.facts([*table.facts, *(("failed", f"{name}: {why}") for name, why in table.errors)])
