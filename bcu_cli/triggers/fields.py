"""Checks of the settings and tensors of a trigger, made before the trigger is constructed from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import TriggerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_HINT = "give a value in that range, or write the file again"


@dataclass(frozen=True)
class Number:
    """The allowed values of a setting.

    Args:
        least: Smallest value.
        most: Largest value.
        whole: Whether it must be a whole number.
    """

    least: float
    most: float
    whole: bool = False

    def __str__(self) -> str:
        return f"{'whole ' if self.whole else ''}numbers from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Floats:
    """The allowed shape and values of a floating-point tensor.

    Args:
        shape: The size of each dimension: a number, or ``C``, ``H`` or ``W`` for that of the images.
        least: Smallest value.
        most: Largest value.
    """

    shape: tuple[int | str, ...]
    least: float
    most: float


def checked_settings(trigger: str, numbers: Mapping[str, Number], settings: Any) -> dict[str, int | float]:
    """Check settings and convert each to its type.

    Args:
        trigger: Name of the trigger, for errors.
        numbers: The allowed values of each setting.
        settings: The settings that the user or a file gives.

    Raises:
        TriggerError: A setting is unknown, of another type, not finite or out of its range.
    """
    if not isinstance(settings, dict):
        raise TriggerError(f"the settings of the trigger {trigger} are no table", "write the file again")
    return {str(name): _number(trigger, str(name), numbers, value) for name, value in settings.items()}


def _number(trigger: str, name: str, numbers: Mapping[str, Number], value: Any) -> int | float:
    if name not in numbers:
        there_are = f"its settings are {', '.join(numbers)}" if numbers else "it has no settings"
        raise TriggerError(f"{trigger} has no setting {name[:60]}", there_are)
    known = numbers[name]
    fits = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and known.least <= value <= known.most  # False for NaN
        and (not known.whole or value == int(value))
    )
    if isinstance(value, float) and not math.isfinite(value):
        raise TriggerError(f"the setting {name} of the trigger {trigger} is not finite", _HINT)
    if not fits:
        message = f"the setting {name} of the trigger {trigger} cannot be {str(value)[:40]}: it takes {known}"
        raise TriggerError(message, _HINT)
    return int(value) if known.whole else float(value)


def check_tensors(
    trigger: str, floats: Mapping[str, Floats], tensors: Mapping[str, Tensor], shape: tuple[int, int, int]
) -> None:
    """Refuse tensors that are not a trigger's for images of ``shape`` (C, H, W).

    Raises:
        TriggerError: A tensor is missing, unknown, of another type or shape, not finite or out of its range.
    """
    if unmatched := sorted(set(floats) ^ set(tensors)):
        what = "lacks the tensor" if unmatched[0] in floats else "has no tensor"
        raise TriggerError(f"the trigger {trigger} {what} {unmatched[0][:60]}", "write the file again")
    sides = dict(zip("CHW", shape, strict=True))
    for name, known in floats.items():
        expected = tuple(sides[side] if isinstance(side, str) else side for side in known.shape)
        check_floats(f"the tensor {name} of the trigger {trigger}", tensors[name], expected, known)


def check_floats(what: str, tensor: Tensor, shape: tuple[int, ...], known: Floats | None = None) -> None:
    """Refuse a tensor of another type or shape, or with values that are not finite or out of range.

    Args:
        what: Name of the tensor in errors.
        tensor: The tensor that was read.
        shape: The required shape.
        known: The allowed range; None allows any finite value.

    Raises:
        TriggerError: The tensor is refused.
    """
    if not tensor.is_floating_point() or tuple(tensor.shape) != shape:
        kind = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise TriggerError(
            f"{what} is {kind}, not fractions of the shape {list(shape)}", "write the file again"
        )
    if not tensor.isfinite().all():
        raise TriggerError(f"{what} holds numbers that are not finite", "write the file again")
    least, most = (known.least, known.most) if known else (-math.inf, math.inf)
    if tensor.numel() and not least <= float(tensor.min()) <= float(tensor.max()) <= most:
        raise TriggerError(f"{what} holds numbers that are not from {least:g} to {most:g}", _HINT)
