"""Attacks, which implant a trigger into a network; each has its own file, named like the attack.

A new attack is a new module here that defines one subclass of ``bcu_cli.attacks.base.Attack``. The command's
choices, its help and the contract tests find it. ``none`` trains a clean network for comparison.

This module imports no torch, so that the choices can be listed instantly.
"""

from __future__ import annotations

from pkgutil import iter_modules

_NO_ATTACKS = {"base", "none", "poisoning"}


def names() -> tuple[str, ...]:
    """The names of all attacks, in alphabetical order."""
    modules = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in modules if name not in _NO_ATTACKS))
