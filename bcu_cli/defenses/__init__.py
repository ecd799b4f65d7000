"""Defenses: suspicious model + images -> cleansed model. One file each, named like the defense.

A new defense is a new module here that defines one subclass of ``bcu_cli.defenses.base.Defense``; the
command's choices, its help and the contract tests find it. This module imports no torch, so that the choices
can be listed instantly.
"""

from __future__ import annotations

from pkgutil import iter_modules

_NO_DEFENSES = {
    "adversary",
    "base",
    "canary",
    "depth",
    "disturbance",
    "feature_maps",
    "finetuning",
    "patches",
    "residues",
    "shares",
    "waves",
}


def names() -> tuple[str, ...]:
    """The names of all defenses, in alphabetical order."""
    modules = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in modules if name not in _NO_DEFENSES))
