"""Checks for the optional packages that drawings need, before long work."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

_MODULES = {"matplotlib": "matplotlib", "scikit-learn": "sklearn"}
"""Import names by installation names."""


def require(option: str, path: Path, *packages: str) -> None:
    """Refuse an option whose file needs packages that are not installed.

    Args:
        option: The option, with dashes.
        path: The file to draw.
        packages: Installation names of the packages.

    Raises:
        UsageError: A package is not installed.
    """
    for package in packages:
        if find_spec(_MODULES[package]) is None:
            raise UsageError(
                f"{option} {path} needs {package}, which is not installed",
                f"pip install {' '.join(packages)}",
            )
