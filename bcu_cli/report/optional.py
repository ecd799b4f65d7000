"""The packages that drawing needs: an extra, and asked for before the work."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

_MODULES = {"matplotlib": "matplotlib", "scikit-learn": "sklearn"}
"""Names to install, and names to import."""


def require(option: str, path: Path, *packages: str) -> None:
    """Raise unless there is what an option's file is drawn with.

    Args:
        option: As the user writes it.
        path: The file.
        packages: By their names to install.

    Raises:
        UsageError: One of them is not installed.
    """
    for package in packages:
        if find_spec(_MODULES[package]) is None:
            raise UsageError(
                f"{option} {path} needs {package}, which is not installed", 'pip install "bcu-cli[plots]"'
            )
