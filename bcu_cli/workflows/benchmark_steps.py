"""The steps of the cells of a benchmark, in order: attack, cleanse, evaluate."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import events
from bcu_cli.benchmark import results as files
from bcu_cli.benchmark.cell import CLEAN
from bcu_cli.errors import BcuError, UsageError
from bcu_cli.evaluation.trigger_choice import Own, TriggerChoice, trigger_beside
from bcu_cli.runs import children
from bcu_cli.runs.engine import Warnings
from bcu_cli.workflows import jobs
from bcu_cli.workflows.attack import AttackRequest
from bcu_cli.workflows.cleanse import CleanseRequest
from bcu_cli.workflows.evaluate import EvaluateRequest
from bcu_cli.workflows.method_options import NAMED, options_of
from bcu_cli.workflows.texts import model_options, size_in_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bcu_cli.benchmark.cell import Backdoored, Cell, Plan
    from bcu_cli.benchmark.image_links import ImageLinks
    from bcu_cli.benchmark.results import Results
    from bcu_cli.runs.resuming import Stop

_ATTACK, _CLEANSE, _EVALUATE = "attack", "cleanse", "evaluate"
_SETTING = "setting"
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (int, float, bool, str, Path)}
_OF_THE_PLAN = {"attack", "data", "out", "arch", "target_class", "seed", "resume", "preview", "download"}
_OF_A_MODEL = ("arch", "input_size", "mean", "std", "weights_key")
_OPTIONS: dict[str, dict[str, Any]] = {
    _ATTACK: {
        one.name: _KINDS[str(one.type).partition(" ")[0]]
        for one in fields(AttackRequest)
        if one.name not in {*_OF_THE_PLAN, "settings"}
    },
    _CLEANSE: {
        **NAMED,
        **dict.fromkeys((*_OF_A_MODEL, "method", "device", "precision", "cache"), str),
        **dict.fromkeys(("pseudo_labels", "force", "profile"), bool),
        "input_size": int,
    },
}
"""The options that a plan may set for each step besides settings, with their types."""


class Run:
    """The missing cells of a plan, and their progress.

    Each step is a command with a name like ``cleanse CELL``; its result decides which steps follow.

    Args:
        plan: The plan.
        left: The missing cells of the plan.
        results: The folder of results.
        pictures: The folders of images.
        on_cell: Called with each cell that is written, including failed ones.
    """

    def __init__(
        self,
        plan: Plan,
        left: Sequence[Cell],
        results: Results,
        pictures: ImageLinks,
        on_cell: Callable[[Cell], None],
    ) -> None:
        self._plan, self._results, self._pictures, self._on_cell = plan, results, pictures, on_cell
        self._cells = {cell.name: cell for cell in left}
        self._of_network: dict[str, list[Cell]] = {}
        for cell in left:
            self._of_network.setdefault(cell.model.name, []).append(cell)
        self._reports: dict[tuple[str, str], dict[str, Any]] = {}
        self._warnings = Warnings()

    def first(self) -> Iterator[children.Command]:
        """The steps that can begin at once."""
        for cells in self._of_network.values():
            model = cells[0].model
            path = self._results.network(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            report = self._intact(path, self._network_decides(model))
            if report:
                yield from self._after_attack(model, report)
            else:
                yield f"{_ATTACK} {model.name}", self._attack(model)

    def after(self, name: str, ended: children.CommandResult, stop: Stop) -> list[children.Command]:
        """The steps that follow a finished step."""
        if ended.code and stop.requested:
            return []
        step, _, rest = name.partition(" ")
        affected = self._of_network[rest] if step == _ATTACK else [self._cells[rest]]
        self._warnings.pass_on(rest, ended.err)
        try:
            if ended.code and not (step == _CLEANSE and _judged(ended)):
                raise children.failure(ended, f"run bcu {step} alone with --debug")
            if step == _ATTACK:
                model = affected[0].model
                path = self._results.network(model)
                decides = self._network_decides(model)
                return [*self._after_attack(model, files.keep(path, ended.out, decides, ended.seconds))]
            if step == _CLEANSE:
                return [*self._after_cleanse(affected[0], self._keep_cleansed(affected[0], ended))]
            self._finish(affected[0], ended)
        except BcuError as error:
            for cell in affected:
                self._fail(cell, step, error)
        return []

    def _fail(self, cell: Cell, step: str, error: BcuError) -> None:
        self._results.fail(self._plan, cell, step, error.message, error.hint)
        self._on_cell(cell)

    def _after_attack(self, model: Backdoored, report: dict[str, Any]) -> Iterator[children.Command]:
        self._reports[_ATTACK, model.name] = report
        for cell in self._of_network[model.name]:
            path = self._results.cleansed(cell)
            cleansed = self._intact(path, self._decides(cell))
            if cleansed:
                yield from self._after_cleanse(cell, cleansed)
                continue
            try:
                command = self._cleanse(cell)
            except BcuError as error:
                self._fail(cell, _CLEANSE, error)
            else:
                yield f"{_CLEANSE} {cell.name}", command

    def _after_cleanse(self, cell: Cell, report: dict[str, Any]) -> Iterator[children.Command]:
        self._reports[_CLEANSE, cell.name] = report
        yield f"{_EVALUATE} {cell.name}", self._evaluate(cell)

    def _finish(self, cell: Cell, ended: children.CommandResult) -> None:
        attack, cleanse = self._reports[_ATTACK, cell.model.name], self._reports[_CLEANSE, cell.name]
        try:
            reports = {_ATTACK: attack, _CLEANSE: cleanse, _EVALUATE: json.loads(ended.out)}
        except ValueError as error:
            raise BcuError("bcu evaluate ended without a report", "run it alone with --debug") from error
        seconds = {step: reports[step]["benchmark"]["seconds"] for step in (_ATTACK, _CLEANSE)}
        digests = self._pictures.digests(cell)
        self._results.finish(self._plan, cell, reports, seconds | {_EVALUATE: ended.seconds}, digests)
        files.remove(self._results.cleansed(cell))
        self._on_cell(cell)

    def _keep_cleansed(self, cell: Cell, ended: children.CommandResult) -> dict[str, Any]:
        return files.keep(self._results.cleansed(cell), ended.out, self._decides(cell), ended.seconds)

    def _network_decides(self, model: Backdoored) -> dict[str, Any]:
        """The values that determine a backdoored network, including a digest of its images."""
        cell = self._of_network[model.name][0]
        return model.decides | {"image_digest": self._pictures.digests(cell)["labelled"]}

    def _decides(self, cell: Cell) -> dict[str, Any]:
        """The values that determine its cleansed network, with digests of the original and of images."""
        report = self._reports[_ATTACK, cell.model.name]
        images = {"image_digests": self._pictures.digests(cell)}
        return cell.decides | {"original": report["outputs"]["model"]["sha256"]} | images

    def _intact(self, path: Path, decides: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return files.kept(path, decides)
        except BcuError as error:
            if path.exists():
                events.say(f"{path.name} is made again: {error.message}")
            return None

    def _attack(self, model: Backdoored) -> list[str]:
        request = attack_request(
            model, data=self._pictures.labelled(model.data), out=self._results.network(model)
        )
        return jobs.command(request)

    def _cleanse(self, cell: Cell) -> list[str]:
        request = cleanse_request(
            cell,
            model=self._results.network(cell.model),
            images=self._pictures.of(cell),
            out=self._results.cleansed(cell),
        )
        return jobs.command(request)

    def _evaluate(self, cell: Cell) -> list[str]:
        model = self._results.network(cell.model)
        none = Own(picture=None, mask=None, mode="replace", alpha=None)
        name = None if cell.model.attack == CLEAN else str(trigger_beside(model))
        trigger = TriggerChoice(name=name, target_class=None, target_said=False, own=none)
        request = EvaluateRequest(
            models=(model, self._results.cleansed(cell)),
            data=str(self._pictures.labelled(cell.model.data)),
            triggers=trigger,
            device=str(cell.options.get("device", "auto")),
        )
        return jobs.command(request)


def attack_request(model: Backdoored, *, data: Path, out: Path) -> AttackRequest:
    """The request to train a network of a plan.

    Args:
        model: The network.
        data: The folder of the labelled images.
        out: The file to write.

    Raises:
        UsageError: There is no such option, or a value makes no sense.
    """
    return AttackRequest(
        attack=model.attack,
        data=str(data),
        out=out,
        arch=model.arch,
        target_class=model.target,  # type: ignore[arg-type]  # a plan holds numbers and next alone
        seed=model.seed,
        resume=True,
        **_values(_ATTACK, f"attacks.{model.label}", model.options),
    )


def cleanse_request(cell: Cell, *, model: Path, images: Path, out: Path) -> CleanseRequest:
    """The request to cleanse a cell's network.

    Args:
        cell: The cell.
        model: The file of the network.
        images: The folder of the defense's images.
        out: The file to write.

    Raises:
        UsageError: There is no such method, it has no such option, or a value makes no sense.
    """
    values = defense_options(cell)
    settings, profile = values.pop("settings", ()), values.pop("profile", False)
    given = {name: values.pop(name, None) for name in NAMED}
    about_model = {name: values.pop(name, None) for name in _OF_A_MODEL}
    if "cache" in values:
        values["cache"] = size_in_bytes(values["cache"], "--cache")
    return CleanseRequest(
        model=model,
        images=images,
        out=out,
        options=options_of(values["method"], cell.model.seed, given, settings),
        options_of_model=model_options(**about_model),
        max_images=cell.max_images,
        resume=True,
        with_profile=profile,
        **values,
    )


def defense_options(cell: Cell) -> dict[str, Any]:
    """The options of a cell's defense, by their names in Python.

    Raises:
        UsageError: No method has such an option, or it takes no such value.
    """
    return _values(_CLEANSE, f"defenses.{cell.defense}", cell.command)


def _values(step: str, where: str, options: dict[str, Any]) -> dict[str, Any]:
    """The values of a plan's options, by their names in Python; ``settings`` are those of the settings."""
    return dict(_value(step, where, option, value) for option, value in options.items())


def _value(step: str, where: str, option: str, value: Any) -> tuple[str, Any]:
    hint = f"bcu {step} --help lists what it takes"
    if option == _SETTING:
        return "settings", tuple(str(one) for one in (value if isinstance(value, list) else [value]))
    name = option.replace("-", "_")
    if name not in _OPTIONS[step]:
        raise UsageError(f"{where}: bcu {step} has no option --{option}", hint)
    kind = _OPTIONS[step][name]
    try:
        if isinstance(value, list) or isinstance(value, bool) != (kind is bool):
            raise ValueError
        return name, value if kind is bool else kind(str(value))
    except ValueError as error:
        raise UsageError(f"{where}: --{option} cannot be {value}", hint) from error


def _judged(ended: children.CommandResult) -> bool:
    """Whether a cleansing that ended with a bad verdict has written its network all the same (--force)."""
    try:
        return bool(json.loads(ended.out)["output"])
    except (ValueError, KeyError, TypeError):
        return False
