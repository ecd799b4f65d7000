"""The options of a method of ``bcu cleanse``, from the options of the command line."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from bcu_cli.cli.options import numbers
from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bcu_cli.defenses.base import Defense, DefenseOptions

_SEED = "seed"
NAMED = (
    "strength",
    "ratios",
    "init",
    "targets",
    "temperature",
    "epochs",
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "crop_padding",
    "flip",
    "quick",
)
"""Options of methods that have a command-line option; all others are a ``--setting``."""
_OWNERS = dict.fromkeys(NAMED[:5], "bcu") | {"quick": "auto"}
"""Method of the options that only one method has."""


def options_of(
    kind: type[Defense[Any]], seed: int, values: Mapping[str, Any], settings: Mapping[str, float]
) -> DefenseOptions:
    """The options of a method.

    Args:
        kind: The method.
        seed: Seed of all random draws.
        values: Values of the options in ``NAMED``; None is the method's default.
        settings: Values of ``--setting``.

    Raises:
        UsageError: The method has no such option or setting, or a value is invalid.
    """
    defaults = {field.name: field.default for field in fields(kind.Options) if field.name != _SEED}
    given = {name: value for name, value in values.items() if value is not None}
    for name in given:
        if name not in defaults:
            owner = f"it is an option of --method {_OWNERS[name]}; " if name in _OWNERS else ""
            hint = owner + _there_are(kind.name, defaults)
            raise UsageError(f"--method {kind.name} has no {option(name)}", hint)
    for name in settings:
        if name not in defaults or name in NAMED:
            raise UsageError(f"--method {kind.name} has no setting {name}", _there_are(kind.name, defaults))
    numeric = {name: _like(defaults[name], name, value) for name, value in settings.items()}
    return kind.Options(seed=seed, **_parsed(given), **numeric)


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
