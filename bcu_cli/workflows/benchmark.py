"""Measure defenses on backdoored networks by a plan, and make tables of the results."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import events
from bcu_cli.benchmark import plan as plans
from bcu_cli.benchmark import results as files
from bcu_cli.benchmark import table as tables
from bcu_cli.benchmark.image_links import ImageLinks
from bcu_cli.benchmark.results import Results
from bcu_cli.checkpoints.unfinished import NAMES, remove_unfinished
from bcu_cli.errors import UsageError
from bcu_cli.report.text import percent
from bcu_cli.runs import engine, resuming
from bcu_cli.runs.engine import EngineOptions
from bcu_cli.runs.locks import locked
from bcu_cli.workflows.benchmark_steps import Run, attack_request, defense_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcu_cli.benchmark.cell import Cell, Plan
    from bcu_cli.benchmark.table import TableOf
    from bcu_cli.runs.children import Engine


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """Request to measure cells of a plan.

    Attributes:
        plan: The file of the plan.
        out: The folder of results.
        size: One of the plan's sizes; None where it has none.
        data_root: The folder of all data sets.
        only: Conditions on the cells, like ``attack=wanet,sig``.
        engine: Where the commands run.
    """

    plan: Path
    out: Path
    size: str | None = None
    data_root: Path = Path("data")
    only: tuple[str, ...] = ()
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """Result of a benchmark.

    Attributes:
        table: The table of the cells.
        cells: Number of requested cells.
        failed: Number of failed cells.
    """

    table: TableOf
    cells: int
    failed: int

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document of the benchmark, without its schema's version."""
        return {"command": "benchmark", **self.table.as_json()}


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The missing cells of a plan, with an estimate of their time.

    Attributes:
        plan: The plan.
        cells: All requested cells.
        left: The missing cells.
        networks: Number of networks to train for them.
        jobs: Commands at a time.
        unknown: Number of cells and networks without similar measured ones.
        seconds: Estimated seconds; None where a time is unknown.
    """

    plan: Plan
    cells: Sequence[Cell]
    left: Sequence[Cell]
    networks: int
    jobs: int
    unknown: int
    seconds: float | None

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document of the outlook, without its schema's version."""
        return {
            "command": "benchmark",
            "plan": self.plan.folder,
            "cells": len(self.cells),
            "missing": [cell.name for cell in self.left],
            "networks_to_train": self.networks,
            "jobs": self.jobs,
            "estimated_seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class TablesResult:
    """The tables of a folder of results.

    Attributes:
        tables: A table for each plan.
        outputs: The files that were written, by their kind.
    """

    tables: Sequence[TableOf]
    outputs: dict[str, Path]

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document of the tables, without its schema's version."""
        return {
            "command": "benchmark table",
            "tables": [one.as_json() for one in self.tables],
            "outputs": {name: str(path) for name, path in self.outputs.items()},
        }


def benchmark(request: BenchmarkRequest) -> BenchmarkResult:
    """Measure the missing cells of a plan, and retry failed ones.

    Raises:
        BcuError: The request makes no sense, or the images or the folder cannot be used.
        KeyboardInterrupt: The run was stopped.
    """
    work = _Work(request)
    with locked(work.out) as lock:
        results = Results(work.out)
        jobs, threads = work.at_a_time
        with engine.running(request.engine, jobs=jobs, threads=threads, lock=lock) as runner:
            _measure(work, results, runner)
    found = [results.cell(work.plan, cell) for cell in work.cells]
    (made,) = tables.of(found)
    failed = sum(1 for cell in found if cell["error"])
    return BenchmarkResult(table=made, cells=len(found), failed=failed)


def look_ahead(request: BenchmarkRequest) -> Outlook:
    """Find the missing cells, and estimate their time from measured ones.

    Raises:
        UsageError: The request makes no sense, or a cell was finished under other options.
    """
    from bcu_cli.benchmark.estimate import Times

    work = _Work(request)
    results, jobs = Results(work.out), work.at_a_time[0]
    left = results.left(work.plan, work.cells)
    times = Times(results.cells.values())
    networks = {cell.model.name: cell.model for cell in left}.values()
    missing = [model for model in networks if not results.network(model).exists()]
    parts = [times.network(model) for model in missing] + [times.cell(cell) for cell in left]
    known = [seconds for seconds in parts if seconds is not None]
    unknown = len(parts) - len(known)
    # However many run at a time, a cell waits for its network.
    whole = max(sum(known) / jobs, max(known, default=0.0)) if not unknown else None
    for folder in work.pictures.missing(work.cells):
        events.warn(f"there is no folder {folder}: say with --data-root where the images are")
    return Outlook(
        plan=work.plan,
        cells=work.cells,
        left=left,
        networks=len(missing),
        jobs=jobs,
        unknown=unknown,
        seconds=whole,
    )


def make_tables(results: Path, out: Path) -> TablesResult:
    """Make the tables of all cells, and write them as Markdown, CSV and HTML.

    Args:
        results: A folder that a benchmark has written.
        out: The folder to write to.

    Raises:
        UsageError: The folder holds no cells.
    """
    from bcu_cli.benchmark import writing

    cells = files.read_cells(results)
    if not cells:
        raise UsageError(f"{results} holds no cells", "bcu benchmark PLAN.toml --out writes them")
    made = tables.of(cells.values())
    return TablesResult(tables=made, outputs=writing.write(made, out))


class _Work:
    """A request with its plan read, and refused where every cell would be refused."""

    def __init__(self, request: BenchmarkRequest) -> None:
        request.engine.check()
        self.plan = plans.read(request.plan, request.size)
        self.cells = plans.only(self.plan.cells, request.only)
        _check_options(self.cells)
        # Absolute, because Ray starts its workers elsewhere.
        self.out = request.out.absolute()
        self.pictures = ImageLinks(request.data_root.absolute(), self.out / "pictures")
        on_gpu = _on_gpu(self.cells)
        self.at_a_time = engine.choose_parallelism(request.engine.jobs, len(self.cells), on_gpu=on_gpu)


def _check_options(cells: Sequence[Cell]) -> None:
    """Refuse at once what the attack or the defense would refuse for every cell."""
    from bcu_cli.models.new_classifier import usual_size

    for model in {cell.model.name: cell.model for cell in cells}.values():
        usual_size(model.arch, model.options.get("input-size"))
        attack_request(model, data=Path(), out=Path())
    for cell in cells:
        defense_options(cell)


def _on_gpu(cells: Sequence[Cell]) -> bool:
    asked = {str(cell.model.options.get("device", "auto")) for cell in cells}
    return any(engine.on_gpu(device) for device in asked)


def _measure(work: _Work, results: Results, runner: Engine) -> None:
    """Measure the cells that are missing."""
    plan, cells = work.plan, work.cells
    left = results.left(plan, cells)
    work.pictures.prepare(left)
    results.refuse_other_images(plan, work.pictures.digests)
    for folder in {leftover.parent for leftover in results.folder.rglob(NAMES)}:
        remove_unfinished(folder)
    copied = results.adopt(plan, cells)
    also = f", {copied} of them from another plan" if copied else ""
    events.say(f"{len(cells) - len(left)} of {len(cells)} cells are there{also}")
    done = 0
    with resuming.stoppable() as stop, events.progress(f"measuring {plan.folder}") as bar:
        bar.advance(0, len(left))

        def on_cell(cell: Cell) -> None:
            nonlocal done
            done += 1
            made = results.cell(plan, cell)
            line = f"{cell.name}: {_line(made)}"
            bar.advance(1, len(left), line)
            events.say(f"{done} of {len(left)}: {line}", noted=not made["error"])

        run = Run(plan, left, results, work.pictures, on_cell)
        runner(run.first(), stop=stop, on_end=lambda name, ended: run.after(name, ended, stop))
    if done < len(left):
        events.say(f"{len(left) - done} of {len(cells)} cells are left; the same command again goes on")
        raise KeyboardInterrupt


def _line(cell: dict[str, Any]) -> str:
    """A cell in one line; a network without a backdoor has no ASR."""
    if error := cell["error"]:
        return f"{error['step']} failed: {error['message']}"
    parts = []
    for measure in ("acc", "asr"):
        sides = [cell[side][measure] for side in ("before", "after")]
        if all(sides):
            before, after = (percent(each["value"]) for each in sides)
            parts.append(f"{measure.upper()} {before} -> {after}")
    return ", ".join(parts)
