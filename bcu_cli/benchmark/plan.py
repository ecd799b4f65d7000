"""Reading a plan from TOML, and expanding it into cells."""

from __future__ import annotations

import tomllib
from itertools import product
from typing import TYPE_CHECKING, Any

from bcu_cli import attacks
from bcu_cli.benchmark.cell import (
    CLEAN,
    KEYS,
    OWN,
    PAPERS_METHOD,
    Backdoored,
    Cell,
    DataSet,
    Images,
    Plan,
    Target,
)
from bcu_cli.benchmark.toml_table import Table, merged
from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SET_BY_THE_PLAN = {
    *("data", "devices", "force", "format", "images", "json", "max-images", "out", "resume", "seed"),
    "target-class",
}
_EXAMPLES = {"data": "cifar10", "attacks": "badnets", "defenses": "bcu"}
_ZOO_OPTIONS = {
    *("seeds", "targets", "only", "jobs", "engine", "gpus-per-cell", "preview", "download", "arch"),
}


def read(path: Path, size: str | None) -> Plan:
    """Read a plan.

    Args:
        path: The TOML file.
        size: Name of the ``[size.NAME]`` table that overrides the rest; None where there are no sizes.

    Raises:
        UsageError: The file cannot be read, or its content is invalid.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "name a plan, a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is no TOML: {error}", "examples/plans shows what plans look like"
        ) from error
    sizes = raw.pop("size", {})
    Table({"size": sizes}, "", path.name).tables("size")  # refuses what is not a table
    if size is None and sizes:
        raise UsageError(f"{path.name} has several sizes", f"choose one: --size {' or --size '.join(sizes)}")
    if size is not None and size not in sizes:
        known = f"it has {', '.join(sizes)}" if sizes else "leave --size out"
        raise UsageError(f"{path.name} has no size {size}", known)
    whole = merged(raw, sizes[size]) if size else raw
    return _plan(Table(whole, "", path.name), path.stem, size or "")


def only(cells: Sequence[Cell], conditions: Sequence[str]) -> list[Cell]:
    """The cells that meet every condition, like ``attack=wanet`` or ``seed=0,1``.

    Raises:
        UsageError: A condition is invalid, or no cell meets them all.
    """
    left = list(cells)
    for condition in conditions:
        key, equals, values = condition.partition("=")
        if key not in KEYS or not equals:
            hint = f"like attack=wanet or seed=0,1; the keys are {', '.join(KEYS)}"
            raise UsageError(f"--only {condition} is no condition", hint)
        wanted = {value.strip() for value in values.split(",")}
        there = {str(cell.coordinates[key]): None for cell in cells}
        if strangers := sorted(wanted - set(there)):
            raise UsageError(
                f"--only {condition}: no {key} is {strangers[0]}", f"there are {', '.join(there)}"
            )
        left = [cell for cell in left if str(cell.coordinates[key]) in wanted]
    if not left:
        raise UsageError("no cell meets every --only", "leave one of them out")
    return left


def _plan(table: Table, name: str, size: str) -> Plan:
    title, note, paper = (table.text(key, "") for key in ("title", "note", "paper"))
    numbers = table.wholes("max-images", [2500], least=1)
    conditions = table.texts("only", []) if "only" in table else []
    models = _models(table)
    sources = {key: _images(one, key, numbers) for key, one in table.tables("images").items()}
    defenses = _defenses(table)
    table.done()
    own = {OWN: (Images(name=OWN), numbers)}
    cells = [
        Cell(model=model, defense=key, options=options, images=images, max_images=number)
        for model, (key, (options, its_numbers)), (images, numbers) in product(
            models, defenses.items(), (sources or own).values()
        )
        for number in its_numbers or numbers
    ]
    if len({cell.name for cell in cells}) < len(cells):
        raise table.error("two cells have the same name", "name defenses and images without hyphens")
    for cell in cells:
        if cell.images.name == OWN and cell.max_images > cell.model.data.defense_images:
            there = f"{cell.model.data.name} gives a defense {cell.model.data.defense_images} images"
            raise table.error(f"{there}, not {cell.max_images}", "raise defense-images, or lower max-images")
        drawn = (cell.images.classes or 0) * (cell.images.per_class or 0)
        if 0 < drawn < cell.max_images:
            there = f"[images.{cell.images.name}] draws {drawn} images"
            raise table.error(
                f"{there}, not {cell.max_images}", "raise classes or per-class, or lower max-images"
            )
    return Plan(
        name=name,
        size=size,
        title=title or name,
        note=note,
        paper=paper,
        cells=tuple(only(cells, conditions)),
    )


def _defenses(table: Table) -> dict[str, tuple[dict[str, Any], list[int]]]:
    """Options of each defense, and its numbers of images where it overrides those of the plan."""
    common = table.table("defense").options(_SET_BY_THE_PLAN)
    defenses = {}
    for name, one in _required_tables(table, "defenses").items():
        numbers = one.wholes("max-images", [], least=1) if "max-images" in one else []
        options = common | one.options(_SET_BY_THE_PLAN)
        if options.get("method") == PAPERS_METHOD:
            del options["method"]
        defenses[name] = options, numbers
    return defenses


def _models(table: Table) -> list[Backdoored]:
    architectures = table.texts("architectures", ["resnet18_cifar"])
    common = table.table("attack").options(_SET_BY_THE_PLAN | _ZOO_OPTIONS)
    data = [_data_set(one, key) for key, one in _required_tables(table, "data").items()]
    attacked = {key: _attack(one, key) for key, one in _required_tables(table, "attacks").items()}
    implanted: list[tuple[Target, int]] = []
    for part in table.array("models"):
        implanted += product(part.classes("targets"), part.wholes("seeds", [0], least=0))
        part.done()
    if len(set(implanted)) < len(implanted):
        raise table.error("[[models]] names a target with a seed twice", "leave one of them out")
    return [
        Backdoored(
            data=data_set,
            arch=arch,
            label=label,
            attack=attack,
            options=common | of_data | own,
            target=target,
            seed=seed,
        )
        for (data_set, of_data), arch, (label, (attack, own)) in product(
            data, architectures, attacked.items()
        )
        for target, seed in (_once_for_each_seed(implanted) if attack == CLEAN else implanted)
    ]


def _once_for_each_seed(implanted: list[tuple[Target, int]]) -> list[tuple[Target, int]]:
    """The first target of each seed: networks without a backdoor do not differ by the target."""
    first: dict[int, Target] = {}
    for target, seed in implanted:
        first.setdefault(seed, target)
    return [(target, seed) for seed, target in first.items()]


def _required_tables(table: Table, key: str) -> dict[str, Table]:
    if not (found := table.tables(key)):
        raise table.error(f"there is no [{key}.NAME]", f"name at least one, like [{key}.{_EXAMPLES[key]}]")
    return found


def _data_set(table: Table, name: str) -> tuple[DataSet, dict[str, Any]]:
    data = DataSet(
        name=name,
        folder=table.text("folder", name),
        defense_images=table.whole("defense-images", 5000) or 0,
        defense_from=table.text("defense-from", "test"),
        train_images=table.whole("train-images", None),
        test_images=table.whole("test-images", None),
    )
    if data.defense_from not in {"test", "train"}:
        raise table.error(f'defense-from is "{data.defense_from}"', 'defense-from = "test", or "train"')
    options = table.table("attack").options(_SET_BY_THE_PLAN | _ZOO_OPTIONS)
    table.done()
    return data, options


def _attack(table: Table, name: str) -> tuple[str, dict[str, Any]]:
    attack = table.text("attack", name)
    known = (*attacks.names(), CLEAN)
    if attack not in known:
        hint = f"name it with attack, one of {', '.join(known)}"
        raise table.error(f"no attack is called {attack}", hint)
    return attack, table.options(_SET_BY_THE_PLAN | _ZOO_OPTIONS)


def _images(table: Table, name: str, numbers: list[int]) -> tuple[Images, list[int]]:
    images = Images(
        name=name,
        folder=table.text("folder", ""),
        classes=table.whole("classes", None),
        per_class=table.whole("per-class", None),
    )
    numbers = table.wholes("max-images", numbers, least=1)
    table.done()
    if (name == OWN) != (images.folder == ""):
        hint = f"[images.{OWN}] is the defense set of the cell's own data, and has none; all others need one"
        raise table.error(f'[images.{name}] has folder = "{images.folder}"', hint)
    if (images.classes is None) != (images.per_class is None):
        raise table.error(f"[images.{name}] has one of classes and per-class", "give both, or none")
    return images, numbers
