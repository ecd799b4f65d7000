"""Parsing of the settings of triggers and methods in ``--setting`` and in benchmark plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def settings_of(
    owner: str, texts: Iterable[str], *, kind: str, owners: Collection[str], like: str
) -> dict[str, float]:
    """Parse texts like ``NAME=NUMBER`` or ``OWNER.NAME=NUMBER``; settings of other owners are left out.

    Args:
        owner: The trigger or method whose settings are wanted.
        texts: The texts as given.
        kind: The noun for owners in messages, such as ``attack``.
        owners: The names of all that have settings.
        like: An example for hints, as ``OWNER.NAME=NUMBER``.

    Raises:
        UsageError: A text has another form or names an unknown owner.
    """
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        whose, _, name = name.rpartition(".")
        if whose and whose not in owners:
            raise UsageError(f"--setting {text}: no {kind} is called {whose}", f"like --setting {like}")
        try:
            if whose in {"", owner}:
                values[name] = float(value)
        except ValueError as error:
            example = like.rpartition(".")[2]
            raise UsageError(f"--setting {text} is not NAME=NUMBER", f"like --setting {example}") from error
    return values
