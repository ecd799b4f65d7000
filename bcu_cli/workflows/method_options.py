"""The options of a method, from what a command line or the plan of a benchmark says."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from bcu_cli import defenses
from bcu_cli.errors import UsageError
from bcu_cli.workflows.settings import settings_of
from bcu_cli.workflows.texts import numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bcu_cli.defenses.base import DefenseOptions

_SEED = "seed"
NAMED: dict[str, type] = {
    "strength": float,
    "ratios": str,
    "init": str,
    "targets": str,
    "temperature": str,
    "epochs": str,
    "batch_size": int,
    "learning_rate": float,
    "momentum": float,
    "weight_decay": float,
    "crop_padding": int,
    "flip": bool,
    "quick": bool,
}
"""What has an option of its own name, with the type of what is given; everything else is a ``--setting``."""
_OWNERS = dict.fromkeys(("strength", "ratios", "init", "targets", "temperature"), "bcu") | {"quick": "auto"}
"""The method of an option that only one has."""


def options_of(method: str, seed: int, said: Mapping[str, Any], settings: Iterable[str]) -> DefenseOptions:
    """The options of a method.

    Args:
        method: Name of the method.
        seed: Seed of everything that is drawn.
        said: What the options of ``NAMED`` say; None is the method's own value.
        settings: Texts that ``--setting`` takes.

    Raises:
        UsageError: There is no such method, or it has no such option or setting, or a value makes no sense.
    """
    from bcu_cli.defenses.base import find

    kind = find(method)
    numeric = settings_of(method, settings, kind="method", owners=defenses.names(), like="clp.u=3")
    defaults = {field.name: field.default for field in fields(kind.Options) if field.name != _SEED}
    given = {name: value for name, value in said.items() if value is not None}
    for name in given:
        if name not in defaults:
            owner = f"it is an option of --method {_OWNERS[name]}; " if name in _OWNERS else ""
            hint = owner + _there_are(kind.name, defaults)
            raise UsageError(f"--method {kind.name} has no {option(name)}", hint)
    for name in numeric:
        if name not in defaults or name in NAMED:
            raise UsageError(f"--method {kind.name} has no setting {name}", _there_are(kind.name, defaults))
    whole = {name: _like(defaults[name], name, value) for name, value in numeric.items()}
    return kind.Options(seed=seed, **_parsed(given), **whole)


def option(name: str) -> str:
    """How the user writes an option of ``NAMED``."""
    return "--" + name.replace("_", "-")


def _there_are(method: str, defaults: Mapping[str, Any]) -> str:
    named = ", ".join(option(name) for name in defaults if name in NAMED)
    settings = ", ".join(
        f"--setting {name}={value:g}" for name, value in defaults.items() if name not in NAMED
    )
    return f"{method} takes {' and '.join(part for part in (named, settings) if part)}"


def _like(default: Any, name: str, value: float) -> int | float:
    if not isinstance(default, int):
        return value
    if not value.is_integer():
        raise UsageError(f"--setting {name}={value:g} is no whole number", f"like --setting {name}={default}")
    return int(value)


def _parsed(given: dict[str, Any]) -> dict[str, Any]:
    """What was given as text, as values."""
    parsed = dict(given)
    if "ratios" in given:
        parsed["ratios"] = numbers(given["ratios"], "--ratios")
    if "temperature" in given:
        if given.get("targets") == "hard":
            raise UsageError("hard targets have no temperature", "leave --temperature or --targets hard out")
        parsed["temperature"] = _pair(given["temperature"])
    if "epochs" in given:
        parsed["epochs"] = _epochs(given["epochs"])
    return parsed


def _epochs(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"--epochs {text} is neither auto nor a number", "--epochs auto")
    return int(text)


def _pair(text: str) -> tuple[float, float]:
    values = numbers(text, "--temperature")
    if values is None or len(values) != 2:
        raise UsageError(
            "--temperature takes two numbers, of the first and the last step", "--temperature 1,4"
        )
    return values[0], values[1]
