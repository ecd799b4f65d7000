"""What is known of a model file, and whether the network in it behaves as if it had a backdoor.

Detectors: one file each, named like the detector. A new one is a new module here that defines one subclass of
``bcu_cli.scan.base.Detector``; the contract tests find it. This module imports no torch.
"""

from __future__ import annotations

from pkgutil import iter_modules

_NO_DETECTORS = {"base", "behaviour", "inspection", "optimising", "reader", "universal", "verdict"}


def names() -> tuple[str, ...]:
    """The names of all detectors, in alphabetical order."""
    modules = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name for name in modules if name not in _NO_DETECTORS))
