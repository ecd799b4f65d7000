"""``bcu attack all``: every attack on every target class with every seed, and a clean model of each seed."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from bcu_cli import attacks, events
from bcu_cli.cli import output
from bcu_cli.cli.exit_codes import BAD, DONE, FAILED
from bcu_cli.cli.zoo_folder import CLEAN, Entry, Zoo
from bcu_cli.errors import BcuError, ImagesError, UsageError
from bcu_cli.runs import children, resuming

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COMMAND = (sys.executable, "-m", "bcu_cli", "attack")
"""What trains an entry; its name and options follow."""
_MOST_NUMBERS = 10_000
_ITS_OWN = {"name", "data", "out", "seeds", "targets", "only", "jobs", "as_json"}
_NO_MATTER = {"download"}
"""Handed on, but the models are the same without."""
_INSTEAD = {
    "target_class": "--targets 0-9 says which classes",
    "seed": "--seeds 0-4 says which seeds",
    "resume": "it always goes on with what is there",
    "preview": "run one attack alone for its pictures",
}


@dataclass(frozen=True, kw_only=True)
class ZooOptions:
    """What only a zoo is asked for, as given; None is the default."""

    seeds: str | None = None
    targets: str | None = None
    only: str | None = None
    jobs: str | None = None

    def refuse(self) -> None:
        """A single attack takes none of them.

        Raises:
            UsageError: One was given.
        """
        if given := [name for name, value in asdict(self).items() if value is not None]:
            hint = "bcu attack all takes it; one attack takes --seed and --target-class"
            raise UsageError(f"--{given[0]} is for a zoo", hint)

    def entries(self) -> list[Entry]:
        """All combinations, in their order.

        Raises:
            UsageError: A text that makes no sense.
        """
        names = _attacks(self.only)
        seeds = whole_numbers(self.seeds or "0", "--seeds")
        targets = whole_numbers(self.targets or "0", "--targets")
        clean = [Entry(attack=CLEAN, target_class=None, seed=seed) for seed in seeds]
        backdoored = [
            Entry(attack=name, target_class=target, seed=seed)
            for name in names
            for target in targets
            for seed in seeds
        ]
        return sorted(clean + backdoored, key=lambda entry: entry.order)


def whole_numbers(text: str, option: str) -> list[int]:
    """``0-4,7`` as the numbers 0, 1, 2, 3, 4, 7.

    Raises:
        UsageError: It is no such thing.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < first + _MOST_NUMBERS:
            raise UsageError(f"{option} {text} is no list of numbers", f"like {option} 0-4 or {option} 0,3,7")
        found.update(range(first, last + 1))
    return sorted(found)


def train_all(context: typer.Context, zoo_options: ZooOptions, *, data: object, out: Path) -> NoReturn:
    """Train what is missing of a zoo, and say which models pass.

    Args:
        context: Of the command ``attack``: its options are handed on as they were given.
        zoo_options: Which models.
        data: Where the images are.
        out: The folder of the zoo.

    Raises:
        BcuError: Options that make no sense, or a folder that holds something else.
        KeyboardInterrupt: The run was stopped.
        Exit: With the verdict.
    """
    in_force, given = _handed_on(context)
    entries = zoo_options.entries()
    plain = [text for text in in_force["setting"] or [] if "." not in text.partition("=")[0]]
    if plain and len({entry.attack for entry in entries}) > 2:
        raise UsageError(f"--setting {plain[0]} does not say of which attack", "like --setting sig.delta=60")
    jobs, threads = children.at_a_time(zoo_options.jobs, len(entries), on_gpu=_check(data, in_force))
    with Zoo(out, data=str(data), options=in_force, jobs=jobs, threads=threads) as zoo:
        with events.progress(f"checking {out}") as bar:
            missing = zoo.missing(entries, on_each=lambda: bar.advance(1, len(entries)))
        zoo.write_index()
        there = len(entries) - len(missing)
        events.say(f"{there} of {len(entries)} models are there; {jobs} at a time, {threads} threads each")
        _train(zoo, missing, there, given, data=str(data), jobs=jobs, threads=threads)
        if context.params["as_json"]:
            output.document(zoo.index())
        else:
            _show(out, zoo.rows(entries))
        verdicts = [row["gate"]["passed"] for row in zoo.rows(entries)]
    raise typer.Exit(BAD if False in verdicts else FAILED if None in verdicts else DONE)


def _attacks(only: str | None) -> list[str]:
    known = [name for name in attacks.names() if name != CLEAN]
    chosen = known if only is None else [name.strip() for name in only.split(",")]
    if strangers := [name for name in chosen if name not in {*known, CLEAN}]:
        raise UsageError(
            f"--only {only}: no attack is called {strangers[0]}", f"there are {', '.join(known)}"
        )
    return sorted({*chosen} - {CLEAN})


def _handed_on(context: typer.Context) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The options in force that decide a model, as plain values; and the words of those that were given."""
    in_force, given = {}, {}
    for option in context.command.params:
        name, value = str(option.name), context.params.get(str(option.name))
        source: Any = context.get_parameter_source(name)
        was_given = source is not None and source.name == "COMMANDLINE"
        values = list(value) if isinstance(value, list | tuple) else [value]
        if was_given and name in _INSTEAD:
            raise UsageError(f"{option.opts[0]} makes no sense for all attacks", _INSTEAD[name])
        if name in _ITS_OWN or name in _INSTEAD:
            continue
        if name not in _NO_MATTER:
            in_force[name] = json.loads(json.dumps(value if values else None, default=str))
        if was_given and isinstance(value, bool):
            given[name] = [option.opts[0] if value else option.secondary_opts[0]]
        elif was_given:
            given[name] = [f"{option.opts[0]}={one}" for one in values]
    return in_force, given


def _check(data: object, in_force: dict[str, Any]) -> bool:
    """Refuse once what every entry would refuse, where that is quickly seen; returns whether a GPU trains."""
    from bcu_cli.models.fresh import usual_size

    if ":" not in str(data) and not Path(str(data)).exists():
        raise ImagesError(f"{data} does not exist", "name a folder that holds pictures")
    usual_size(in_force["arch"], in_force["input_size"])
    return children.on_gpu(in_force["device"])


def _words(entry: Entry, given: dict[str, list[str]]) -> list[str]:
    """What an entry takes of the options given: a clean one has no trigger, and only LC has a surrogate."""
    takes = dict.fromkeys(given, True) | {
        "poison_rate": entry.attack != CLEAN,
        "setting": entry.attack != CLEAN,
        "surrogate": entry.attack == "lc",
    }
    words = [word for name, some in given.items() if takes[name] for word in some]
    target = [] if entry.target_class is None else [f"--target-class={entry.target_class}"]
    return [*words, *target, f"--seed={entry.seed}"]


def _train(
    zoo: Zoo,
    missing: Sequence[Entry],
    there: int,
    given: dict[str, list[str]],
    *,
    data: str,
    jobs: int,
    threads: int,
) -> None:
    """Train entries, and write the index after each."""
    by_name = {entry.name: entry for entry in missing}
    total = there + len(missing)
    done, warned = there, set[str]()

    def command(entry: Entry) -> list[str]:
        ends = [f"--data={data}", f"--out={zoo.model(entry)}", "--resume", "--json"]
        return [*COMMAND, entry.attack, *_words(entry, given), *ends]

    with resuming.stoppable() as stop, events.progress(f"training {zoo.folder}") as bar:
        bar.advance(there, total)

        def after(name: str, ended: children.Ended) -> tuple[()]:
            nonlocal done
            if ended.code and stop.requested:
                return ()
            for line in ended.err.splitlines():
                if line.startswith("warning: ") and line not in warned:
                    warned.add(line)
                    events.warn(f"{name}: {line.removeprefix('warning: ')}")
            entry = by_name[name]
            try:
                if ended.code:
                    raise children.failure(ended, "run that attack alone with --debug")
                zoo.keep(entry, ended.out)
            except BcuError as error:
                zoo.fail(entry, error.message, error.hint)
            zoo.write_index()
            done += 1
            row = zoo.rows([entry])[0]
            line = _line(row)
            bar.advance(1, total, line)
            if row["error"] or not sys.stderr.isatty():
                events.say(f"{done} of {total}: {line}")
            return ()

        children.run_all(
            [(entry.name, command(entry)) for entry in missing],
            jobs=jobs,
            environment=children.with_threads(threads),
            stop=stop,
            on_end=after,
            keep_open=[zoo.lock],
        )
    if done < total:
        events.say(f"{done} of {total} models are there; the same command again goes on")
        raise KeyboardInterrupt


def _share(row: dict[str, Any], what: str) -> str:
    return output.percent(row[what]["value"]) if row[what] else "-"


def _line(row: dict[str, Any]) -> str:
    """One entry in one line of talk."""
    if row["error"]:
        return f"{row['name']} failed: {row['error']['message']} ({row['error']['hint']})"
    asr = f", ASR {_share(row, 'asr')}" if row["asr"] else ""
    return f"{row['name']}, ACC {_share(row, 'acc')}{asr}, {row['seconds']:.0f} s"


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
