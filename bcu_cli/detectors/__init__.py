"""Detectors of backdoors, one module each, named like the detector.

A new detector is a new module here that defines one subclass of
``bcu_cli.detectors.base.Detector``; the contract tests find it. This module imports no torch.
"""

from __future__ import annotations

from pkgutil import iter_modules

_HELPERS = {"base", "input_optimisation", "running", "screening", "universal", "verdict"}


def names() -> tuple[str, ...]:
    """The names of all detectors, in alphabetical order."""
    modules = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name for name in modules if name not in _HELPERS))
