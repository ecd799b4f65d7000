"""Values that the user gives as text, in an option or in the plan of a benchmark."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from bcu_cli.workflows.loading import ModelOptions


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """``0.1,0.2`` as numbers.

    Raises:
        UsageError: They are none.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {text} is no list of numbers", f"like {option} 0.5,0.5,0.5") from error


def model_options(
    arch: str | None,
    input_size: int | None,
    mean: str | None,
    std: str | None,
    weights_key: str | None = None,
) -> ModelOptions:
    """What the options say of a model.

    Raises:
        UsageError: ``--mean`` or ``--std`` is no list of numbers.
    """
    from bcu_cli.workflows.loading import ModelOptions

    return ModelOptions(
        arch=arch,
        input_size=input_size,
        mean=numbers(mean, "--mean"),
        std=numbers(std, "--std"),
        weights_key=weights_key,
    )


def size_in_bytes(text: str, option: str) -> int:
    """``4GB``, ``200 MB`` or ``0`` as a number of bytes.

    Raises:
        UsageError: It is none.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if found is None:
        raise UsageError(f"{option} {text} is no size", f"like {option} 4GB, 500MB, 2GiB or 0")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))
