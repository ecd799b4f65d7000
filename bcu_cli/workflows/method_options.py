"""The options of a method, from the options of a command line or of a benchmark plan."""

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
    "prefer": str,
}
"""Type of each option of a method that has a command-line option; all others are a ``--setting``."""
_OWNERS = {
    **dict.fromkeys(("strength", "ratios", "init", "targets", "temperature"), "bcu"),
    **dict.fromkeys(("quick", "prefer"), "auto"),
}
"""Method of the options that only one method has."""


def options_of(method: str, seed: int, values: Mapping[str, Any], settings: Iterable[str]) -> DefenseOptions:
    """The options of a method.

    Args:
        method: Name of the method.
        seed: Seed of all random draws.
        values: Values of the options in ``NAMED``; None is the method's default.
        settings: Values of ``--setting``, as texts.

    Raises:
        UsageError: There is no such method, or it has no such option or setting, or a value makes no sense.
    """
    from bcu_cli.defenses.base import find

    kind = find(method)
    numeric = settings_of(method, settings, kind="method", owners=defenses.names(), like="clp.u=3")
    defaults = {field.name: field.default for field in fields(kind.Options) if field.name != _SEED}
    given = {name: value for name, value in values.items() if value is not None}
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
    """An option of ``NAMED`` as it is written on the command line."""
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
    """The given options, with texts parsed."""
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
