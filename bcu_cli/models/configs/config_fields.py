"""The fields that the parser of a configuration passes to its claim. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ConfigFields:
    """The fields of one configuration in bcu's terms, not yet checked for range.

    Args:
        fields: Arguments of :class:`~bcu_cli.models.configs.claims.Claim` by name; None for a missing field.
        refusals: Fields that ask for preprocessing that bcu cannot do, in words.
        complaints: Unknown fields, which are ignored, in words.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()


def config_classes(config: dict[str, Any]) -> tuple[str, ...]:
    """Read the names of the classes, in the order of the outputs, from a ``config.json``.

    transformers writes ``id2label``, and timm ``label_names``.

    Returns:
        The names; empty where they are not distinct texts for all outputs, or are transformers' placeholders.
    """
    return class_names_in(config.get("id2label", config.get("label_names")))


def class_names_in(value: Any) -> tuple[str, ...]:
    """The names of classes in a list, in a table by their indices, or in a table of indices by their names.

    Args:
        value: A value of an untrusted file.

    Returns:
        The names; empty where they are not distinct texts for all outputs, or are transformers' placeholders.
    """
    names = value
    if isinstance(names, dict):
        if all(type(label) is int for label in names.values()):
            names = {label: name for name, label in names.items()}
        numbered = {str(label): name for label, name in names.items()}
        numbers = [str(label) for label in range(len(names))]
        names = [numbered[number] for number in numbers] if numbered.keys() == set(numbers) else None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        return ()
    placeholders = all(name == f"LABEL_{label}" for label, name in enumerate(names))
    return () if placeholders or len(set(names)) < len(names) else tuple(names)


def abbreviated(value: object) -> str:
    """A value of an untrusted file as a short text."""
    return repr(value)[:60]
