"""``bcu benchmark``: run the cells of a plan, and make its table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bcu_cli.cli import benchmark_output, output
from bcu_cli.cli.exit_codes import FAILED
from bcu_cli.cli.options import Json, panel

_option = panel()


class _PlanOrCommand(TyperGroup):
    """``bcu benchmark PLAN.toml`` is ``bcu benchmark run PLAN.toml``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert ``run`` before arguments that do not begin with a command."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_PlanOrCommand, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
Folder = Annotated[Path, typer.Argument(help="A folder that bcu benchmark has written.", metavar="RESULTS")]


@app.callback()
def benchmark() -> None:
    """Measure defenses on backdoored networks by a plan: bcu benchmark PLAN.toml --out results/.

    A plan names attacks, architectures, data sets, defenses, image sources, numbers of images and seeds;
    examples/plans has one for each experiment of the paper. Each finished cell is one small JSON file. The
    same command again runs only the missing cells.
    """


@app.command()
def run(
    plan: Annotated[Path, typer.Argument(help="A plan, like those in examples/plans.", metavar="PLAN.toml")],
    out: Annotated[Path, _option("The folder of results; several plans can share one.")],
    size: Annotated[str | None, _option("One of the plan's sizes, like smoke or paper.")] = None,
    data_root: Annotated[Path, _option("The folder of all data sets.")] = Path("data"),
    only: Annotated[
        list[str] | None,
        _option(
            "Only some cells, like attack=wanet,sig; keys: data, arch, attack, target, seed, defense, "
            "images, max-images. Repeatable."
        ),
    ] = None,
    dry_run: Annotated[
        bool, _option("Only show the missing cells and an estimate of their time.", "--dry-run")
    ] = False,
    jobs: Annotated[
        str | None, _option("Commands at a time; auto is one for each core, and one on a GPU.")
    ] = None,
    engine: Annotated[str, _option("local, or ray: the machines of a Ray cluster.")] = "local",
    gpus_per_cell: Annotated[
        float | None, _option("ray: share of a GPU, 0.25 for four cells on one. (default: 1 if any)", min=0.0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the missing cells of a plan, and retry failed ones."""
    from bcu_cli.runs.engine import EngineOptions
    from bcu_cli.workflows import benchmark as measuring

    request = measuring.BenchmarkRequest(
        plan=plan,
        out=out,
        size=size,
        data_root=data_root,
        only=tuple(only or ()),
        engine=EngineOptions(name=engine, jobs=jobs, gpus_per_cell=gpus_per_cell),
    )
    if dry_run:
        outlook = measuring.look_ahead(request)
        if as_json:
            output.document(outlook.document)
        else:
            benchmark_output.show_outlook(outlook)
        return
    result = measuring.benchmark(request)
    if as_json:
        output.document(result.document)
    else:
        benchmark_output.show_table(result.table)
    if result.failed:
        again = "repeat the command to retry them"
        output.say(f"{result.failed} of {result.cells} cells failed; {again}")
        raise typer.Exit(FAILED)


@app.command()
def table(
    results: Folder,
    out: Annotated[
        Path | None, _option("Where table.md, table.csv and table.html are written. (default: the folder)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the table of all cells with the paper's results: on the screen, as Markdown, CSV and HTML."""
    from bcu_cli.workflows.benchmark import make_tables

    made = make_tables(results, out or results)
    if as_json:
        output.document(made.document)
        return
    for one in made.tables:
        benchmark_output.show_table(one)
    output.say(f"written: {', '.join(map(str, made.outputs.values()))}")
