"""Whether a value that was read can take the place of another: same kinds, names, shapes and types.

A state that is restored is compared with the state of the training that it is restored to, field by field,
before anything takes it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer


def require_like(found: Any, wanted: Any, what: str) -> None:
    """Refuse a value that is not of the kind of another.

    Args:
        found: A value that was read: tensors, numbers, texts, None, and lists, tuples and tables of them.
        wanted: What it is compared with.
        what: What it is called in the message.

    Raises:
        ValueError: It lacks a name or has one too many, or a tensor's shape or type or a value's kind differ.
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
    """Refuse a state that an optimizer of the same kind for the same parameters did not have.

    What an optimizer keeps of a parameter it makes in its first step: there may be nothing of it yet.

    Raises:
        ValueError: It is no such state.
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
            _require_of(parameters[number], value, f"the optimizer's {name} of parameter {number}")


def _require_of(parameter: Tensor, value: Any, what: str) -> None:
    """Refuse what an optimizer never keeps of a parameter: neither nothing, a number, nor one like it."""
    if isinstance(value, Tensor):
        like = (value.shape, value.dtype) == (parameter.shape, parameter.dtype)
        if not like and value.shape != ():
            raise ValueError(f"{what} is not of its shape and type")
    elif value is not None and not _is_number(value):
        raise ValueError(f"{what} is no tensor and no number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
