"""CIFAR-10 and GTSRB in their published layouts, read by torchvision's classes."""

from __future__ import annotations

import io
import sys
import tarfile
import warnings
import zipfile
import zlib
from contextlib import nullcontext, redirect_stderr
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import ImagesError
from bcu_cli.images.folder import Part
from bcu_cli.images.sources.hidden import is_hidden

if TYPE_CHECKING:
    from collections.abc import Callable

GTSRB_CLASSES = tuple(f"{index:05d}" for index in range(43))
"""Names of GTSRB's training folders."""

_FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    HTTPException,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions that torchvision raises for missing or damaged files, and for a failed download."""


def cifar10(root: Path, *, train: bool, download: bool) -> Part:
    """List CIFAR-10 from ``root/cifar-10-batches-py``.

    Its batches are pickles. Before torchvision unpickles any of the six, it compares the MD5 of all with
    those of the published files; likewise for ``batches.meta``. Any other file is refused and never
    unpickled.

    Args:
        root: The folder that holds (or, for a download, will hold) ``cifar-10-batches-py``.
        train: Whether the training part is read; else the test part.
        download: Whether to download missing files.

    Raises:
        ImagesError: The data set is missing, is not the published one, or cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    data = _make("CIFAR-10", folder, lambda: CIFAR10(root, train=train, download=download), download=download)
    return Part(
        root=Path(f"cifar10:{root}"),
        raw_images=list(data.data),
        labels=[data.classes[target] for target in data.targets],
        classes=tuple(data.classes),
    )


def gtsrb(root: Path, *, train: bool, download: bool) -> Part:
    """List GTSRB from ``root/gtsrb``: the images in ``GTSRB/Training``, or those of ``GT-final_test.csv``.

    Args:
        root: The folder that holds (or, for a download, will hold) ``gtsrb``.
        train: Whether the training part is read; else the test part.
        download: Whether to download missing files.

    Raises:
        ImagesError: The data set is missing, not in the published layout, or cannot be downloaded.
    """
    from torchvision.datasets import GTSRB

    folder, split = root / "gtsrb", "train" if train else "test"
    data = _make("GTSRB", folder, lambda: GTSRB(root, split=split, download=download), download=download)
    # torchvision's public interface gives decoded images only
    files = [(Path(file), target) for file, target in data._samples if not is_hidden(Path(file).name)]
    # torchvision numbers the existing folders, which is wrong if one is missing
    labels = [file.parent.name if train else f"{target:05d}" for file, target in files]
    if unknown := sorted(set(labels) - set(GTSRB_CLASSES)):
        raise ImagesError(
            f"{folder} is not GTSRB as it was published: it has a class {unknown[0]}",
            "its classes are 00000 to 00042; for other images name a folder with one subfolder a class",
        )
    return Part(
        root=Path(f"gtsrb:{root}"),
        raw_images=[file for file, _ in files],
        labels=labels,
        classes=GTSRB_CLASSES,
    )


def _make(what: str, folder: Path, make: Callable[[], Any], *, download: bool) -> Any:
    """Call ``make``, and turn its failures into errors about ``folder``.

    torchvision's progress bar is shown on a terminal only.
    """
    try:
        with (
            warnings.catch_warnings(),
            nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")  # NumPy 2.4.0 to 2.4.4 warn about pickles of 2009
            return make()
    except _FAILURES as error:
        if download:
            why = str(error).partition(". ")[0]
            raise ImagesError(
                f"{what} could not be fetched to {folder}: {why}",
                "check the network and the room on the disk; remove that folder to start again",
            ) from error
        if not folder.exists():
            raise ImagesError(
                f"there is no {what} in {folder.parent}: {folder} does not exist",
                "--download fetches it; or name the folder that holds that one",
            ) from error
        raise ImagesError(
            f"{folder} is not {what} as it was published, or not whole; nothing of it was used",
            "--download fetches what is missing; if that does not help, remove the folder first",
        ) from error
