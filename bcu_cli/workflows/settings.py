"""Settings of a trigger or a method, as ``--setting`` and the plans of a benchmark give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def settings_of(
    owner: str, texts: Iterable[str], *, kind: str, owners: Collection[str], like: str
) -> dict[str, float]:
    """Texts like ``NAME=NUMBER`` or ``OWNER.NAME=NUMBER`` as a dictionary, without those of other owners.

    Args:
        owner: The trigger or method whose settings are wanted.
        texts: The texts as they were given.
        kind: The word for an owner, like ``attack``.
        owners: The names of all that have settings.
        like: An example for the hints.

    Raises:
        UsageError: One of them is no such thing.
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
