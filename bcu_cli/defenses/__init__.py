"""Defenses, which turn a suspicious model and images into a cleansed model; one module for each defense.

A new defense is a new module here that defines one subclass of ``bcu_cli.defenses.base.Defense``. The
command line and the contract tests find it. Folders hold parts of defenses. This module imports no torch,
so that listing is fast.
"""

from __future__ import annotations

from pkgutil import iter_modules

_HELPERS = {"base"}


def names() -> tuple[str, ...]:
    """The names of all defenses, in alphabetical order."""
    modules = (module.name for module in iter_modules(__path__) if not module.ispkg)
    return tuple(sorted(name.replace("_", "-") for name in modules if name not in _HELPERS))
