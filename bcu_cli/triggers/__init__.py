"""Triggers, which turn a clean image into a triggered one; each has its own file.

A new trigger is a new module here, named like the trigger, that defines one subclass of
``bcu_cli.triggers.base.Trigger``. The commands' choices, their help and the contract tests find it.
``custom`` is the exception: it takes an image of the user's and is chosen by options, not by name.

This module imports no torch, so that the choices can be listed instantly.
"""

from __future__ import annotations

from pkgutil import iter_modules

_NO_TRIGGERS = {"base", "custom", "fields"}
LEARNT = ("iab",)
"""Triggers that an attack trains: they exist in its file alone."""
KEY = "bcu.trigger"
"""Metadata key of a trigger file, whose value is the trigger's name. It is no proof: any file may have it."""


def names(*, learnt: bool = True) -> tuple[str, ...]:
    """The names of all triggers, in alphabetical order; without ``learnt`` of those that need no file."""
    left_out = _NO_TRIGGERS if learnt else {*_NO_TRIGGERS, *LEARNT}
    modules = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in modules if name not in left_out))
