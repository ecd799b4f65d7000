"""Train a zoo: every attack on every target class with every seed, and a clean network of each seed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import attacks, events
from bcu_cli.errors import BcuError, ImagesError, UsageError
from bcu_cli.report.text import percent
from bcu_cli.runs import children, engine, resuming
from bcu_cli.runs.engine import EngineOptions
from bcu_cli.words import number_of
from bcu_cli.workflows import jobs
from bcu_cli.workflows.zoo_folder import CLEAN, Entry, Zoo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcu_cli.runs.children import Engine
    from bcu_cli.workflows.attack import AttackRequest

_DECIDES = (
    *("arch", "input_size", "poison_rate", "setting", "surrogate", "weights", "epochs", "batch_size"),
    *("optimizer", "learning_rate", "schedule", "ema", "flip", "crop_padding", "rotation", "cutout"),
    *("device", "precision"),
)
"""The options that decide a model, in the order of the index."""


@dataclass(frozen=True, kw_only=True)
class ZooRequest:
    """Request to train a zoo.

    Attributes:
        each: Options of each training; attack, file, target class, seed and ``resume`` are replaced.
        out: The folder of the zoo.
        seeds: The seeds.
        targets: The target classes.
        only: The names of the attacks; None is every attack.
        engine: Where the trainings run.
    """

    each: AttackRequest
    out: Path
    seeds: tuple[int, ...] = (0,)
    targets: tuple[int, ...] = (0,)
    only: tuple[str, ...] | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)

    def entries(self) -> list[Entry]:
        """All entries of the zoo in order.

        Raises:
            UsageError: There is no such attack.
        """
        names = _attacks(self.only)
        clean = [Entry(attack=CLEAN, target_class=None, seed=seed) for seed in self.seeds]
        backdoored = [
            Entry(attack=name, target_class=target, seed=seed)
            for name in names
            for target in self.targets
            for seed in self.seeds
        ]
        return sorted(clean + backdoored, key=lambda entry: entry.order)


@dataclass(frozen=True, kw_only=True)
class ZooResult:
    """The zoo after the run.

    Attributes:
        document: The index of the zoo, without its schema's version.
        rows: The index's rows of the requested entries.
    """

    document: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def passed(self) -> bool | None:
        """Whether all entries pass their gates; None if none fails but some are undecided."""
        verdicts = [row["gate"]["passed"] for row in self.rows]
        return False if False in verdicts else None if None in verdicts else True


def attack_all(request: ZooRequest) -> ZooResult:
    """Train the missing networks of a zoo, and judge which networks pass.

    Raises:
        BcuError: The request is invalid, or the folder holds something else.
        KeyboardInterrupt: The run was stopped.
    """
    request.engine.check()
    entries, each = request.entries(), request.each
    plain = [text for text in each.settings if "." not in text.partition("=")[0]]
    if plain and len({entry.attack for entry in entries}) > 2:
        raise UsageError(f"--setting {plain[0]} does not say of which attack", "like --setting sig.delta=60")
    count, threads = engine.choose_parallelism(request.engine.jobs, len(entries), on_gpu=_check(each))
    local = request.engine.name == engine.LOCAL
    pace = (
        f"{count} at a time, {number_of(threads, 'thread')} each"
        if local
        else "Ray decides how many at a time"
    )
    stated = {"jobs": count, "threads": threads} if local else {"jobs": None, "threads": 1}
    with Zoo(request.out, data=each.data, options=_options(each), **stated) as zoo:
        with events.progress(f"checking {request.out}") as bar:
            missing = zoo.missing(entries, on_each=lambda: bar.advance(1, len(entries)))
        zoo.write_index()
        there = len(entries) - len(missing)
        events.say(f"{there} of {len(entries)} models are there; {pace}")
        with engine.running(request.engine, jobs=count, threads=threads, lock=zoo.lock) as work:
            _train(zoo, missing, there, each, work)
        return ZooResult(document=zoo.index(), rows=zoo.rows(entries))


def _attacks(only: tuple[str, ...] | None) -> list[str]:
    known = [name for name in attacks.names() if name != CLEAN]
    chosen = known if only is None else [name.strip() for name in only]
    if strangers := [name for name in chosen if name not in {*known, CLEAN}]:
        raise UsageError(
            f"--only {','.join(only or ())}: no attack is called {strangers[0]}",
            f"there are {', '.join(known)}",
        )
    return sorted({*chosen} - {CLEAN})


def _options(each: AttackRequest) -> dict[str, Any]:
    """Return the options that determine each model, as plain values by option name."""
    values = {name: getattr(each, {"setting": "settings"}.get(name, name)) for name in _DECIDES}
    values["setting"] = values["setting"] or None
    if each.weights is None:
        values["arch"] = each.architecture
    values["learning_rate"] = each.peak_learning_rate
    return json.loads(json.dumps(values, default=str))  # type: ignore[no-any-return]


def _check(each: AttackRequest) -> bool:
    """Refuse options that every entry would refuse; returns whether a GPU is used."""
    from bcu_cli.models.new_classifier import usual_size

    if ":" not in each.data and not Path(each.data).exists():
        raise ImagesError(f"{each.data} does not exist", "name a folder that holds images")
    if each.weights is None:
        usual_size(each.architecture, each.input_size)
    return engine.on_gpu(each.device)


def _of_entry(zoo: Zoo, entry: Entry, each: AttackRequest) -> AttackRequest:
    """The training of one entry: a clean one has no trigger, and only LC has a surrogate."""
    request = replace(each, attack=entry.attack, out=zoo.model(entry), seed=entry.seed, resume=True)
    if entry.attack != "lc":
        request = replace(request, surrogate=None)
    if entry.target_class is None:
        return replace(request, poison_rate=None, settings=())
    return replace(request, target_class=entry.target_class)


def _train(zoo: Zoo, missing: Sequence[Entry], there: int, each: AttackRequest, work: Engine) -> None:
    """Train entries, and write the index after each."""
    by_name = {entry.name: entry for entry in missing}
    total = there + len(missing)
    done, warnings = there, engine.Warnings()

    with resuming.stoppable() as stop, events.progress(f"training {zoo.folder}") as bar:
        bar.advance(there, total)

        def after(name: str, ended: children.CommandResult) -> tuple[()]:
            nonlocal done
            if ended.code and stop.requested:
                return ()
            warnings.pass_on(name, ended.err)
            _keep(zoo, by_name[name], ended)
            done += 1
            row = zoo.rows([by_name[name]])[0]
            line = _line(row)
            bar.advance(1, total, line)
            events.say(f"{done} of {total}: {line}", noted=not row["error"])
            return ()

        commands = [(entry.name, jobs.command(_of_entry(zoo, entry, each))) for entry in missing]
        work(commands, stop=stop, on_end=after)
    if done < total:
        events.say(f"{done} of {total} models are there; the same command again goes on")
        raise KeyboardInterrupt


def _keep(zoo: Zoo, entry: Entry, ended: children.CommandResult) -> None:
    """Record the result of an entry."""
    try:
        if ended.code:
            raise children.failure(ended, "run that attack alone with --debug")
        zoo.keep(entry, ended.out)
    except BcuError as error:
        zoo.fail(entry, error.message, error.hint)
    zoo.write_index()


def _line(row: dict[str, Any]) -> str:
    """One line that describes an entry."""
    if row["error"]:
        return f"{row['name']} failed: {row['error']['message']} ({row['error']['hint']})"
    asr = f", ASR {percent(row['asr']['value'])}" if row["asr"] else ""
    return f"{row['name']}, ACC {percent(row['acc']['value'])}{asr}, {row['seconds']:.0f} s"
