"""Models: a checkpoint's named tensors become a runnable classifier.

Importing this package does not import torch; names that need torch are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bcu_cli.models.architecture import Architecture
from bcu_cli.models.networks.builtin import BUILTIN_ARCHITECTURES, builtin_names
from bcu_cli.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from bcu_cli.models.architectures.identification import class_count, identify
    from bcu_cli.models.classifier import Classifier
    from bcu_cli.models.loading import Loaded, load
    from bcu_cli.models.metadata import metadata_for
    from bcu_cli.models.registry import build

__all__ = [
    "BUILTIN_ARCHITECTURES",
    "Architecture",
    "Classifier",
    "Loaded",
    "Preprocessing",
    "build",
    "builtin_names",
    "class_count",
    "identify",
    "load",
    "metadata_for",
]

_LAZY = {
    "Classifier": "classifier",
    "Loaded": "loading",
    "build": "registry",
    "class_count": "architectures.identification",
    "identify": "architectures.identification",
    "load": "loading",
    "metadata_for": "metadata",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
