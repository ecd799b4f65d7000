"""``bcu benchmark``: the cells of a plan, and the table that is made of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from bcu_cli.cli import benchmark_output, output
from bcu_cli.cli.exit_codes import FAILED
from bcu_cli.cli.options import Json
from bcu_cli.errors import UsageError
from bcu_cli.runs import children
from bcu_cli.runs.locked import locked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcu_cli.benchmark.cell import Cell, Plan
    from bcu_cli.benchmark.results import Results

_ENGINES = ("local", "ray")


class _PlanOrCommand(TyperGroup):
    """``bcu benchmark PLAN.toml`` is ``bcu benchmark run PLAN.toml``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``run`` before what begins with no command."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_PlanOrCommand, no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="A folder that bcu benchmark has written.", metavar="RESULTS")]


@app.callback()
def benchmark() -> None:
    """Measure defenses on backdoored networks, as a plan says: bcu benchmark PLAN.toml --out results/.

    A plan is attacks, architectures, data sets, defenses, image sources, numbers of images and seeds;
    examples/plans has one for each experiment of the paper. Each cell is one small JSON file, written when it
    is done; the same command again does only what is missing.
    """


@app.command()
def run(
    plan: Annotated[Path, typer.Argument(help="A plan, like those in examples/plans.", metavar="PLAN.toml")],
    out: Annotated[Path, typer.Option(help="The folder of results; several plans can share one.")],
    size: Annotated[str | None, typer.Option(help="One of the plan's sizes, like smoke or paper.")] = None,
    data_root: Annotated[Path, typer.Option(help="The folder of all data sets.")] = Path("data"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Some cells alone, like attack=wanet,sig; keys: data, arch, attack, target, seed, defense, "
            "images, max-images. Repeatable."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is missing and how long it will take, and do nothing.")
    ] = False,
    jobs: Annotated[
        str | None, typer.Option(help="Commands at a time; auto is one a core, and on a GPU one.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: the machines of a Ray cluster.")] = "local",
    gpus_per_cell: Annotated[
        float | None,
        typer.Option(min=0.0, help="ray: share of a GPU, 0.25 for four cells on one. (default: 1 if any)"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Do the cells of a plan that are missing; those that failed are tried again."""
    from bcu_cli.benchmark import plan as plans
    from bcu_cli.benchmark.pictures import Pictures
    from bcu_cli.benchmark.results import Results
    from bcu_cli.cli import benchmark_run
    from bcu_cli.runs import ray_engine

    if engine not in _ENGINES:
        raise UsageError(f"there is no engine {engine}", f"--engine takes {', '.join(_ENGINES)}")
    if engine == "ray" and jobs is not None:
        raise UsageError(
            "--jobs is for the local engine", "Ray runs as many as its processors and GPUs allow"
        )
    if engine != "ray" and gpus_per_cell is not None:
        raise UsageError("--gpus-per-cell is for --engine ray", "leave it out")
    read = plans.read(plan, size)
    cells = plans.only(read.cells, only or [])
    _check_options(cells)
    out, data_root = out.absolute(), data_root.absolute()  # Ray's workers are somewhere else
    pictures = Pictures(data_root, out / "pictures")
    at_a_time = children.at_a_time(jobs, len(cells), on_gpu=_on_gpu(cells))
    if dry_run:
        outlook = benchmark_output.look_ahead(read, cells, Results(out), at_a_time[0])
        for folder in pictures.missing(cells):
            output.warn(f"there is no folder {folder}: say with --data-root where the pictures are")
        if as_json:
            output.document(benchmark_output.outlook_document(outlook))
        else:
            benchmark_output.show_outlook(outlook)
        return
    with ExitStack() as stack:
        lock = stack.enter_context(locked(out))
        results = Results(out)
        if engine == "ray":
            work = stack.enter_context(ray_engine.cluster(gpus_per_cell))
        else:
            work = benchmark_run.local(*at_a_time, lock)
        benchmark_run.do(read, cells, results, pictures, work)
    _show(read, cells, results, as_json=as_json)


@app.command()
def table(
    results: Folder,
    out: Annotated[
        Path | None,
        typer.Option(help="Where table.md, table.csv and table.html are written. (default: the folder)"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the table of all cells, beside the paper's figures: on the screen, as Markdown, CSV and HTML."""
    from bcu_cli.benchmark import results as files
    from bcu_cli.benchmark import table as tables
    from bcu_cli.benchmark import writing

    cells = files.read_cells(results)
    if not cells:
        raise UsageError(f"{results} holds no cells", "bcu benchmark PLAN.toml --out writes them")
    made = tables.of(cells.values())
    written = writing.write(made, out or results)
    if as_json:
        output.document(
            {
                "command": "benchmark table",
                "tables": [one.as_json() for one in made],
                "outputs": {name: str(path) for name, path in written.items()},
            }
        )
        return
    for one in made:
        benchmark_output.show_table(one)
    output.say(f"written: {', '.join(map(str, written.values()))}")


def _check_options(cells: Sequence[Cell]) -> None:
    """Refuse at once what ``bcu attack`` would refuse of every cell."""
    from bcu_cli.models.fresh import usual_size

    known = _options_of("attack")
    for model in {cell.model.name: cell.model for cell in cells}.values():
        usual_size(model.arch, model.options.get("input-size"))
        for option in model.options:
            if option not in known:
                hint = "bcu attack --help lists what it takes"
                raise UsageError(f"attacks.{model.label}: bcu attack has no option --{option}", hint)


def _options_of(command: str) -> set[str]:
    """The long options of a command, without dashes."""
    from bcu_cli.cli.app import app as whole

    group: Any = typer.main.get_command(whole)
    return {word.removeprefix("--") for option in group.commands[command].params for word in option.opts}


def _on_gpu(cells: Sequence[Cell]) -> bool:
    asked = {str(cell.model.options.get("device", "auto")) for cell in cells}
    return any(children.on_gpu(device) for device in asked)


def _show(plan: Plan, cells: Sequence[Cell], results: Results, *, as_json: bool) -> None:
    """The table of these cells; failed ones make the exit code.

    Raises:
        Exit: Some have failed.
    """
    from bcu_cli.benchmark import table as tables

    found = [results.cell(plan, cell) for cell in cells]
    (made,) = tables.of(found)
    if as_json:
        output.document({"command": "benchmark", **made.as_json()})
    else:
        benchmark_output.show_table(made)
    if failed := sum(1 for cell in found if cell["error"]):
        output.say(f"{failed} of {len(cells)} cells failed; the same command again tries them once more")
        raise typer.Exit(FAILED)
