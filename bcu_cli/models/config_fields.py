"""The fields that the parser of a configuration passes to its claim. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ConfigFields:
    """The fields of one configuration in bcu's terms, not yet checked for range.

    Args:
        fields: Arguments of :class:`~bcu_cli.models.claims.Claim` by name; None for a missing field.
        refusals: Fields that ask for preprocessing that bcu cannot do, in words.
        complaints: Unknown fields, which are ignored, in words.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()


def abbreviated(value: object) -> str:
    """A value of an untrusted file as a short text."""
    return repr(value)[:60]
