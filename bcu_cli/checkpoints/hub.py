"""Models of the Hugging Face hub: ``hf-hub:owner/name[@revision]``, fetched by its own library.

Only files are fetched, into the library's cache; nothing that a repository holds is run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from bcu_cli.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_REFERENCE = re.compile(r"hf-hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
_SAFE = ("*.json", "*.safetensors")
_PICKLED = ("*.bin", "*.pt", "*.pth")


def is_reference(path: Path) -> bool:
    """Whether what stands for a path is a model of the hub."""
    return str(path).startswith("hf-hub:")


def fetch_model(reference: Path) -> Path:
    """The folder with a repository's configuration and weights, safetensors where it has them.

    Raises:
        UsageError: It is no reference.
        CheckpointError: It cannot be fetched.
    """
    folder = _fetch(reference, _SAFE, below=False)
    return folder if any(folder.glob("*.safetensors")) else _fetch(reference, _PICKLED, below=False)


def fetch_all(reference: Path, suffixes: Sequence[str]) -> Path:
    """The folder with all of a repository's files of some kinds, at any depth.

    Args:
        reference: ``hf-hub:owner/name[@revision]``.
        suffixes: Of the files.

    Raises:
        UsageError: It is no reference.
        CheckpointError: It cannot be fetched.
    """
    return _fetch(reference, ["*.json", *(f"*{suffix}" for suffix in suffixes)], below=True)


def _fetch(reference: Path, patterns: Sequence[str], *, below: bool) -> Path:
    parts = _REFERENCE.fullmatch(str(reference))
    if parts is None:
        raise UsageError(f"{reference} names no model of the hub", "like hf-hub:timm/resnet18.a1_in1k@main")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # they would write between the lines of our own
    try:
        folder = snapshot_download(
            parts["repo"],
            revision=parts["revision"],
            allow_patterns=list(patterns),
            ignore_patterns=None if below else ["*/*"],
        )
    except Exception as error:  # the library's errors and those of its HTTP client have no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "check the name and the revision, and for a private or gated model the variable HF_TOKEN"
        raise CheckpointError(
            f"{reference} cannot be fetched: {reason}", hint, rule="file-missing"
        ) from error
    return Path(folder)
