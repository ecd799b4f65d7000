"""Triggers: one file each, clean image -> triggered image.

A new trigger is a new module here, named like the trigger, that defines one subclass of
``bcu_cli.triggers.base.Trigger``; the commands' choices, their help and the contract tests find it.
(``custom`` is the user's own image: it has no name, only options.) This module imports no torch, so that
the choices can be listed instantly.
"""

from __future__ import annotations

from pkgutil import iter_modules

_NO_TRIGGERS = {"base", "custom", "fields"}
KEY = "bcu.trigger"
"""Metadata of a trigger's file: its name. Any file may have it, so it excuses from nothing."""


def names() -> tuple[str, ...]:
    """The names of all triggers, in alphabetical order."""
    modules = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in modules if name not in _NO_TRIGGERS))
