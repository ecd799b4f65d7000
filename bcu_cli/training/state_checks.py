"""Checks that a restored state has the names, kinds, shapes and types of the expected one.

Before a training takes up a state that was read from a file, it is compared with its current state field by
field.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer


def require_like(found: Any, wanted: Any, what: str) -> None:
    """Refuse a value whose structure differs from an expected one.

    Args:
        found: The value that was read: tensors, numbers, strings, None, and lists, tuples and mappings of
            them.
        wanted: The expected value.
        what: Name of the value in the message.

    Raises:
        ValueError: A name is missing or superfluous, or a shape, type or kind differs.
    """
    if isinstance(wanted, Tensor):
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(f"{what} is no tensor {tuple(wanted.shape)} of {wanted.dtype}")
    elif isinstance(wanted, Mapping):
        if not isinstance(found, Mapping) or found.keys() != wanted.keys():
            raise ValueError(f"{what} has other entries")
        for key, value in wanted.items():
            require_like(found[key], value, f"{what}: {key}")
    elif isinstance(wanted, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(wanted):
            raise ValueError(f"{what} has not {len(wanted)} entries")
        for position, value in enumerate(wanted):
            require_like(found[position], value, f"{what} {position}")
    elif _is_number(wanted):
        if not _is_number(found):
            raise ValueError(f"{what} is no finite number")
    elif type(found) is not type(wanted):
        raise ValueError(f"{what} is no {type(wanted).__name__}")


def require_fits(found: Any, optimizer: Optimizer) -> None:
    """Refuse a state that does not fit an optimizer.

    Optimizers create the state of a parameter in the first step, so it may be missing.

    Raises:
        ValueError: The state does not fit.
    """
    wanted = optimizer.state_dict()
    if not isinstance(found, Mapping) or found.keys() != wanted.keys():
        raise ValueError("the optimizer's state has other entries")
    require_like(found["param_groups"], wanted["param_groups"], "the optimizer's groups")
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    kept = found["state"]
    if not isinstance(kept, Mapping) or not kept.keys() <= set(range(len(parameters))):
        raise ValueError("the optimizer's state is of other parameters")
    for number, values in kept.items():
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise ValueError(f"the optimizer's state of parameter {number} is no table")
        for name, value in values.items():
            _check_entry(parameters[number], value, f"the optimizer's {name} of parameter {number}")


def _check_entry(parameter: Tensor, value: Any, what: str) -> None:
    """Refuse a parameter's state other than None, a number, or a tensor of its shape and type."""
    if isinstance(value, Tensor):
        like = (value.shape, value.dtype) == (parameter.shape, parameter.dtype)
        if not like and value.shape != ():
            raise ValueError(f"{what} is not of its shape and type")
    elif value is not None and not _is_number(value):
        raise ValueError(f"{what} is no tensor and no number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
