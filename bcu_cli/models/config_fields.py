"""What the parser of one layout of a model's folder hands to its claim. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ConfigFields:
    """The fields of one configuration in bcu's own terms, not yet checked for range.

    Args:
        fields: Arguments of :class:`~bcu_cli.models.claims.Claim` by name; None where nothing is said.
        refusals: Fields that change what the network is fed, and that bcu cannot do, for people.
        complaints: Fields that are not heeded although nobody knows what they do, for people.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()


def abbreviated(value: object) -> str:
    """A value of a stranger's file as a short text."""
    return repr(value)[:60]
