"""The commands behind the cells of a benchmark, in their order: attack, cleanse, evaluate."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from bcu_cli import events
from bcu_cli.benchmark import results as files
from bcu_cli.checkpoints.unfinished import NAMES, remove_unfinished
from bcu_cli.cli import benchmark_output
from bcu_cli.errors import BcuError
from bcu_cli.evaluation.trigger_choice import trigger_beside
from bcu_cli.runs import children, resuming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bcu_cli.benchmark.cell import Backdoored, Cell, Plan
    from bcu_cli.benchmark.pictures import Pictures
    from bcu_cli.benchmark.results import Results
    from bcu_cli.runs.children import Engine
    from bcu_cli.runs.resuming import Stop

COMMAND = (sys.executable, "-m", "bcu_cli")
"""What runs a step; its name and options follow."""
_ATTACK, _CLEANSE, _EVALUATE = "attack", "cleanse", "evaluate"


def local(jobs: int, threads: int, lock: int) -> Engine:
    """The engine that runs commands here, so many at a time, which keep the lock."""
    environment = children.with_threads(threads)
    return partial(children.run_all, jobs=jobs, environment=environment, keep_open=[lock])


def do(plan: Plan, cells: Sequence[Cell], results: Results, pictures: Pictures, engine: Engine) -> None:
    """Do the cells of a plan that are missing.

    Raises:
        BcuError: The pictures or the folder cannot be used.
        KeyboardInterrupt: The run was stopped.
    """
    left = results.left(plan, cells)
    pictures.prepare(left)
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
            line = f"{cell.name}: {benchmark_output.line(made)}"
            bar.advance(1, len(left), line)
            if made["error"] or not sys.stderr.isatty():
                events.say(f"{done} of {len(left)}: {line}")

        run = Run(plan, left, results, pictures, on_cell)
        engine(run.first(), stop=stop, on_end=lambda name, ended: run.after(name, ended, stop))
    if done < len(left):
        events.say(f"{len(left) - done} of {len(cells)} cells are left; the same command again goes on")
        raise KeyboardInterrupt


class Run:
    """The cells that are left of a plan, and what is known of them so far.

    Each step is a command under a name like ``cleanse CELL``; what ends it decides which steps come next.

    Args:
        plan: The plan.
        left: Its cells that are to be done.
        results: Where they are written.
        pictures: Where their pictures are.
        on_cell: Called with each cell that is written, also as failed.
    """

    def __init__(
        self,
        plan: Plan,
        left: Sequence[Cell],
        results: Results,
        pictures: Pictures,
        on_cell: Callable[[Cell], None],
    ) -> None:
        self._plan, self._results, self._pictures, self._on_cell = plan, results, pictures, on_cell
        self._cells = {cell.name: cell for cell in left}
        self._of_network: dict[str, list[Cell]] = {}
        for cell in left:
            self._of_network.setdefault(cell.model.name, []).append(cell)
        self._reports: dict[tuple[str, str], dict[str, Any]] = {}
        self._warned: set[str] = set()

    def first(self) -> Iterator[children.Command]:
        """What can begin at once."""
        for cells in self._of_network.values():
            model = cells[0].model
            path = self._results.network(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            report = self._intact(path, model.decides)
            if report:
                yield from self._after_attack(model, report)
            else:
                yield f"{_ATTACK} {model.name}", self._attack(model)

    def after(self, name: str, ended: children.Ended, stop: Stop) -> list[children.Command]:
        """What comes after a step that has ended."""
        if ended.code and stop.requested:
            return []
        step, _, rest = name.partition(" ")
        affected = self._of_network[rest] if step == _ATTACK else [self._cells[rest]]
        self._warn(rest, ended.err)
        try:
            if ended.code and not (step == _CLEANSE and _judged(ended)):
                raise children.failure(ended, f"run bcu {step} alone with --debug")
            if step == _ATTACK:
                model = affected[0].model
                path = self._results.network(model)
                return [*self._after_attack(model, files.keep(path, ended.out, model.decides, ended.seconds))]
            if step == _CLEANSE:
                return [*self._after_cleanse(affected[0], self._keep_cleansed(affected[0], ended))]
            self._finish(affected[0], ended)
        except BcuError as error:
            for cell in affected:
                self._results.fail(self._plan, cell, step, error.message, error.hint)
                self._on_cell(cell)
        return []

    def _after_attack(self, model: Backdoored, report: dict[str, Any]) -> Iterator[children.Command]:
        self._reports[_ATTACK, model.name] = report
        for cell in self._of_network[model.name]:
            path = self._results.cleansed(cell)
            cleansed = self._intact(path, self._decides(cell))
            if cleansed:
                yield from self._after_cleanse(cell, cleansed)
            else:
                yield f"{_CLEANSE} {cell.name}", self._cleanse(cell)

    def _after_cleanse(self, cell: Cell, report: dict[str, Any]) -> Iterator[children.Command]:
        self._reports[_CLEANSE, cell.name] = report
        yield f"{_EVALUATE} {cell.name}", self._evaluate(cell)

    def _finish(self, cell: Cell, ended: children.Ended) -> None:
        attack, cleanse = self._reports[_ATTACK, cell.model.name], self._reports[_CLEANSE, cell.name]
        try:
            reports = {_ATTACK: attack, _CLEANSE: cleanse, _EVALUATE: json.loads(ended.out)}
        except ValueError as error:
            raise BcuError("bcu evaluate ended without a report", "run it alone with --debug") from error
        seconds = {step: reports[step]["benchmark"]["seconds"] for step in (_ATTACK, _CLEANSE)}
        self._results.finish(self._plan, cell, reports, seconds | {_EVALUATE: ended.seconds})
        files.remove(self._results.cleansed(cell))
        self._on_cell(cell)

    def _keep_cleansed(self, cell: Cell, ended: children.Ended) -> dict[str, Any]:
        return files.keep(self._results.cleansed(cell), ended.out, self._decides(cell), ended.seconds)

    def _decides(self, cell: Cell) -> dict[str, Any]:
        """What its cleansed network depends on: also the very bytes of the backdoored one."""
        report = self._reports[_ATTACK, cell.model.name]
        return cell.decides | {"original": report["outputs"]["model"]["sha256"]}

    def _intact(self, path: Path, decides: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return files.kept(path, decides)
        except BcuError as error:
            if path.exists():
                events.say(f"{path.name} is made again: {error.message}")
            return None

    def _warn(self, name: str, text: str) -> None:
        for line in text.splitlines():
            if line.startswith("warning: ") and line not in self._warned:
                self._warned.add(line)
                events.warn(f"{name}: {line.removeprefix('warning: ')}")

    def _attack(self, model: Backdoored) -> list[str]:
        out = self._results.network(model)
        own = [f"--data={self._pictures.labelled(model.data)}", f"--arch={model.arch}"]
        own += [
            f"--target-class={model.target}",
            f"--seed={model.seed}",
            f"--out={out}",
            "--resume",
            "--json",
        ]
        return [*COMMAND, _ATTACK, model.attack, *_words(model.options), *own]

    def _cleanse(self, cell: Cell) -> list[str]:
        model = self._results.network(cell.model)
        own = [f"--images={self._pictures.of(cell)}", f"--max-images={cell.max_images}"]
        own += [f"--seed={cell.model.seed}", f"--out={self._results.cleansed(cell)}", "--resume", "--json"]
        return [*COMMAND, _CLEANSE, str(model), *_words(cell.command), *own]

    def _evaluate(self, cell: Cell) -> list[str]:
        model = self._results.network(cell.model)
        data = self._pictures.labelled(cell.model.data)
        own = [f"--data={data}", f"--trigger={trigger_beside(model)}", "--json"]
        return [*COMMAND, _EVALUATE, str(model), str(self._results.cleansed(cell)), *own]


def _judged(ended: children.Ended) -> bool:
    """Whether a cleansing that ended with a bad verdict has written its network all the same (--force)."""
    try:
        return bool(json.loads(ended.out)["output"])
    except (ValueError, KeyError, TypeError):
        return False


def _words(options: dict[str, Any]) -> list[str]:
    """Options of a plan as a command line has them."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]
    return words
