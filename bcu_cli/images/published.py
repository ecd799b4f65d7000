"""CIFAR-10 and GTSRB as they were published, read by torchvision's own classes."""

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
from bcu_cli.images.hidden import is_hidden

if TYPE_CHECKING:
    from collections.abc import Callable

GTSRB_CLASSES = tuple(f"{index:05d}" for index in range(43))
"""The names of its training folders."""

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
"""What torchvision raises for files that are not there or not whole, and for a download that fails."""


def cifar10(root: Path, *, train: bool, download: bool) -> Part:
    """CIFAR-10 from ``root/cifar-10-batches-py``.

    Its batches are pickles. torchvision compares the MD5 of all six with those of the published files before
    it unpickles the first of them, and that of ``batches.meta`` before it unpickles that; a file of anybody
    else's making is refused and never unpickled.

    Args:
        root: The folder that holds (or, for a download, will hold) ``cifar-10-batches-py``.
        train: The training part, or the test part.
        download: Whether it is fetched where it is not there.

    Raises:
        ImagesError: It is not there, not the published one, or cannot be fetched.
    """
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    data = _make("CIFAR-10", folder, lambda: CIFAR10(root, train=train, download=download), download=download)
    return Part(
        root=Path(f"cifar10:{root}"),
        pictures=list(data.data),
        labels=[data.classes[target] for target in data.targets],
        classes=tuple(data.classes),
    )


def gtsrb(root: Path, *, train: bool, download: bool) -> Part:
    """GTSRB from ``root/gtsrb``: ``.ppm`` images in ``GTSRB/Training``, those of ``GT-final_test.csv``.

    Args:
        root: The folder that holds (or, for a download, will hold) ``gtsrb``.
        train: The training part, or the test part.
        download: Whether it is fetched where it is not there.

    Raises:
        ImagesError: It is not there, not in the published layout, or cannot be fetched.
    """
    from torchvision.datasets import GTSRB

    folder, split = root / "gtsrb", "train" if train else "test"
    data = _make("GTSRB", folder, lambda: GTSRB(root, split=split, download=download), download=download)
    # its public face decodes them itself
    files = [(Path(file), target) for file, target in data._samples if not is_hidden(Path(file).name)]
    # torchvision numbers the folders that are there, which would be wrong where one is missing
    labels = [file.parent.name if train else f"{target:05d}" for file, target in files]
    if strangers := sorted(set(labels) - set(GTSRB_CLASSES)):
        raise ImagesError(
            f"{folder} is not GTSRB as it was published: it has a class {strangers[0]}",
            "its classes are 00000 to 00042; for other images name a folder with one subfolder a class",
        )
    return Part(
        root=Path(f"gtsrb:{root}"),
        pictures=[file for file, _ in files],
        labels=labels,
        classes=GTSRB_CLASSES,
    )


def _make(what: str, folder: Path, make: Callable[[], Any], *, download: bool) -> Any:
    """What ``make`` makes of ``folder``, or why it cannot; torchvision's bar shows only on a terminal."""
    try:
        with (
            warnings.catch_warnings(),
            nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")  # NumPy 2.4.0's to 2.4.4's, of pickles of 2009
            return make()
    except _FAILURES as error:
        if download:
            why = str(error).partition(". ")[0]
            raise ImagesError(
                f"{what} could not be fetched to {folder}: {why}",
                "check the network and the room on the disk; remove that folder to start anew",
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
