"""Models of the Hugging Face hub, ``hf-hub:owner/name[@revision]``, downloaded by ``huggingface_hub``.

Files are only downloaded, into the library's cache; no code of a repository is run.
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
    """Whether a path is a reference to a model of the hub."""
    return str(path).startswith("hf-hub:")


def fetch_model(reference: Path) -> Path:
    """Download a repository's configuration and weights, preferring safetensors, and return their folder.

    Raises:
        UsageError: The reference is malformed.
        CheckpointError: The files cannot be downloaded.
    """
    folder = _fetch(reference, _SAFE, recursive=False)
    return folder if any(folder.glob("*.safetensors")) else _fetch(reference, _PICKLED, recursive=False)


def fetch_all(reference: Path, suffixes: Sequence[str]) -> Path:
    """Download all files of a repository with given suffixes, at any depth, and return their folder.

    Args:
        reference: ``hf-hub:owner/name[@revision]``.
        suffixes: Suffixes of the files, such as ``.pt``.

    Raises:
        UsageError: The reference is malformed.
        CheckpointError: The files cannot be downloaded.
    """
    return _fetch(reference, ["*.json", *(f"*{suffix}" for suffix in suffixes)], recursive=True)


def _fetch(reference: Path, patterns: Sequence[str], *, recursive: bool) -> Path:
    parts = _REFERENCE.fullmatch(str(reference))
    if parts is None:
        raise UsageError(f"{reference} names no model of the hub", "like hf-hub:timm/resnet18.a1_in1k@main")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # they would mix with bcu's own output
    try:
        folder = snapshot_download(
            parts["repo"],
            revision=parts["revision"],
            allow_patterns=list(patterns),
            ignore_patterns=None if recursive else ["*/*"],
        )
    except Exception as error:  # the library and its HTTP client have no common base class of errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "check the name and the revision, and for a private or gated model the variable HF_TOKEN"
        raise CheckpointError(
            f"{reference} cannot be fetched: {reason}", hint, rule="file-missing"
        ) from error
    return Path(folder)
