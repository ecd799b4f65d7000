"""``bcu attack all``: parsing of the options of a zoo, and its table."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from bcu_cli.cli import output
from bcu_cli.cli.exit_codes import BAD, DONE, FAILED
from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bcu_cli.workflows.attack import AttackRequest
    from bcu_cli.workflows.zoo import ZooRequest

_MOST_NUMBERS = 10_000
_INSTEAD = {
    "target_class": "use --targets, like --targets 0-9",
    "seed": "use --seeds, like --seeds 0-4",
    "resume": "a zoo always continues",
    "preview": "use it with a single attack",
}


@dataclass(frozen=True, kw_only=True)
class ZooOptions:
    """Options that only a zoo has, as given; None is the default."""

    seeds: str | None = None
    targets: str | None = None
    only: str | None = None
    jobs: str | None = None
    engine: str | None = None
    gpus_per_cell: float | None = None

    def refuse(self) -> None:
        """Refuse these options for a single attack.

        Raises:
            UsageError: An option was given.
        """
        if given := [name for name, value in asdict(self).items() if value is not None]:
            hint = "bcu attack all takes it; one attack takes --seed and --target-class"
            raise UsageError(f"--{given[0].replace('_', '-')} is for a zoo", hint)

    def request(self, each: AttackRequest) -> ZooRequest:
        """Build the request for a zoo whose networks are trained like ``each``.

        Raises:
            UsageError: An option is invalid.
        """
        from bcu_cli.runs.engine import LOCAL, EngineOptions
        from bcu_cli.workflows.zoo import ZooRequest

        return ZooRequest(
            each=each,
            out=each.out,
            seeds=whole_numbers(self.seeds or "0", "--seeds"),
            targets=whole_numbers(self.targets or "0", "--targets"),
            only=None if self.only is None else tuple(self.only.split(",")),
            engine=EngineOptions(name=self.engine or LOCAL, jobs=self.jobs, gpus_per_cell=self.gpus_per_cell),
        )


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Parse whole numbers and ranges: ``0-4,7`` is 0, 1, 2, 3, 4, 7.

    Raises:
        UsageError: The text has another form.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < first + _MOST_NUMBERS:
            raise UsageError(f"{option} {text} is no list of numbers", f"like {option} 0-4 or {option} 0,3,7")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def refuse_given(context: typer.Context) -> None:
    """Refuse options that do not apply to a zoo.

    Args:
        context: The context of the command ``attack``, which holds the given options.

    Raises:
        UsageError: Such an option was given.
    """
    for option in context.command.params:
        source: Any = context.get_parameter_source(str(option.name))
        if option.name in _INSTEAD and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"{option.opts[0]} does not apply to all attacks", _INSTEAD[option.name])


def train_all(request: ZooRequest, *, as_json: bool) -> NoReturn:
    """Train the missing models of a zoo, and print which models pass.

    Raises:
        BcuError: Options are invalid, or the folder holds something else.
        KeyboardInterrupt: The run was stopped.
        Exit: With the verdict.
    """
    from bcu_cli.workflows.zoo import attack_all

    result = attack_all(request)
    if as_json:
        output.document(result.document)
    else:
        _show(request.out, result.rows)
    raise typer.Exit({True: DONE, False: BAD, None: FAILED}[result.passed])


def _share(row: dict[str, Any], what: str) -> str:
    return output.percent(row[what]["value"]) if row[what] else "-"


def _verdict(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"not trained: {row['error']['message']}"
    word = {True: "passed", False: "failed", None: "not decided"}[row["gate"]["passed"]]
    return ": ".join([word, "; ".join(row["gate"]["reasons"])]).removesuffix(": ")


def _show(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = [
        (
            row["name"],
            _share(row, "acc"),
            _share(row, "asr"),
            "-" if row["seconds"] is None else f"{row['seconds']:.0f}",
            _verdict(row),
        )
        for row in rows
    ]
    output.table(str(folder), ("entry", "ACC", "ASR", "seconds", "gate"), lines)
