"""The user's choice of triggers and their target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bcu_cli import triggers
from bcu_cli.errors import TriggerError, UsageError

if TYPE_CHECKING:
    from bcu_cli.triggers.base import Implanted, Target, Trigger

ALL = "all"
"""All named triggers; as a target, all classes."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """A trigger that the user gives as images."""

    picture: Path | None
    mask: Path | None
    mode: str
    alpha: float | None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A trigger to measure.

    Args:
        trigger: The trigger.
        target_class: The target class; None tries every class.
        label: Name of the trigger, or of its file.
        file: The trigger's file, if it has one.
    """

    trigger: Trigger
    target_class: Target | None
    label: str
    file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class TriggerChoice:
    """The triggers that the user asks for, if any, and their target.

    Args:
        name: A trigger, ``all``, or a file.
        target_class: The target class; None tries every class.
        target_said: Whether the user gave the target; otherwise a trigger file may give it.
        own: A trigger from images, instead of a name.
    """

    name: str | None
    target_class: Target | None
    target_said: bool
    own: Own

    def __bool__(self) -> bool:
        return self.name is not None or self.own.picture is not None

    def files(self, model: Path) -> list[Path]:
        """The files that are read for the triggers of a model, whether they exist or not."""
        own = [path for path in (self.own.picture, self.own.mask) if path]
        if self.name == ALL:
            return [*own, trigger_beside(model)]
        return own if self.name is None or self.name in triggers.names() else [*own, Path(self.name)]

    def find(self, model: Path, shape: tuple[int, int, int], num_classes: int) -> list[Chosen]:
        """The triggers for images of ``shape`` (C, H, W) and the model in that file.

        Raises:
            UsageError: The model has no such target class.
            TriggerError: A trigger is missing, damaged, or not for this model.
        """
        target = self.target_class
        if isinstance(target, int) and target >= num_classes:
            raise UsageError(
                f"{model.name} has no class {target}",
                f"--target-class takes 0 to {num_classes - 1}, next or all",
            )
        return self._find(model, shape, num_classes)

    def _find(self, model: Path, shape: tuple[int, int, int], num_classes: int) -> list[Chosen]:
        from bcu_cli.triggers import base
        from bcu_cli.triggers.custom import ALPHA, Custom

        target = self.target_class
        beside = trigger_beside(model)
        if self.own.picture:
            mode, alpha = self.own.mode, ALPHA if self.own.alpha is None else self.own.alpha
            trigger = Custom.from_files(self.own.picture, shape, mask=self.own.mask, mode=mode, alpha=alpha)
            return [Chosen(trigger=trigger, target_class=target, label=self.own.picture.name)]
        if self.name is None:
            return []
        if self.name == ALL:
            names = triggers.names(learnt=False)
            named = [Chosen(trigger=base.make(n, shape), target_class=target, label=n) for n in names]
            return named + ([self._load(beside, shape, num_classes)] if beside.is_file() else [])
        if self.name in triggers.names():
            if base.find(self.name).learnt:
                raise TriggerError(
                    f"the trigger {self.name} works only as an attack has trained it",
                    f"name its file: --trigger {beside}",
                )
            return [Chosen(trigger=base.make(self.name, shape), target_class=target, label=self.name)]
        if not Path(self.name).is_file():
            known = ", ".join(triggers.names(learnt=False))
            raise TriggerError(
                f"{self.name} is neither a trigger nor a file",
                f"--trigger takes {known}, all, or a file that bcu attack wrote",
            )
        return [self._load(Path(self.name), shape, num_classes)]

    def _load(self, path: Path, shape: tuple[int, int, int], num_classes: int) -> Chosen:
        """The trigger in a file; the file's target applies unless the user gave one."""
        from bcu_cli.triggers import base

        implanted = base.load(path, shape)
        if not self.target_said:
            _refuse_misfit(implanted, path, num_classes)
        target = self.target_class if self.target_said else implanted.target_class
        return Chosen(trigger=implanted.trigger, target_class=target, label=path.name, file=path)


def trigger_beside(model: Path) -> Path:
    """The file to which ``bcu attack`` writes the trigger of a model."""
    return model.parent / (model.name.removesuffix(".safetensors") + ".trigger.safetensors")


def parse_target(text: str | None) -> Target | None:
    """Parse ``--target-class``; None is every class.

    Raises:
        UsageError: The text is not a target.
    """
    if text is None or text == ALL:
        return None
    if text == "next":
        return "next"
    if text.isascii() and text.isdigit():
        return int(text)
    raise UsageError(
        f"--target-class {text} is no class",
        "give a class's index (0, 1, …), next (the class after the true one) or all",
    )


def _refuse_misfit(implanted: Implanted, path: Path, num_classes: int) -> None:
    """Raise unless the target in a trigger file is a class of the model."""
    hint = "give its target with --target-class: a class's index, next or all"
    if implanted.num_classes != num_classes:
        raise TriggerError(
            f"the trigger in {path} is for {implanted.num_classes} classes, the model has {num_classes}", hint
        )
    target = implanted.target_class
    if isinstance(target, int) and not 0 <= target < num_classes:
        raise TriggerError(f"the trigger in {path} has target class {target}, which the model lacks", hint)
