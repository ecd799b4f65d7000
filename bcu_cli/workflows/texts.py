"""Conversion of texts in options and plans to values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from bcu_cli.workflows.loading import ModelOptions


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Convert a list such as ``0.1,0.2`` to numbers.

    Raises:
        UsageError: A part is no number.
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
    """The options on reading a model, as one value.

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
    """Convert a size such as ``4GB``, ``200 MB`` or ``0`` to bytes.

    Raises:
        UsageError: The text is no size.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if found is None:
        raise UsageError(f"{option} {text} is no size", f"like {option} 4GB, 500MB, 2GiB or 0")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))
