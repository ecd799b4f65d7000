"""Labelled images from ``--data``: a folder, a zip file, or a data set in its published layout."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bcu_cli.errors import ImagesError, UsageError
from bcu_cli.images.folder import list_labelled, subfolders
from bcu_cli.images.sources import published
from bcu_cli.images.sources.hidden import Hidden
from bcu_cli.images.sources.zipped import unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bcu_cli.images.folder import Part

NAMED = ("cifar10", "gtsrb", "imagenet")
"""The data sets that may be named before the colon."""

_TRAIN, _TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
"""Names, in any case, of the folders of images to train on, and to measure on; the first one is taken."""
_HINT = f"name a folder, a zip file, or {', '.join(f'{name}:PATH' for name in NAMED)}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images; nothing is listed, downloaded or unpickled before ``train`` or ``test`` is called.

    Args:
        divided: Whether there are a training part and a test part; else both are all images.
        train: Lists the images to train on.
        test: Lists the images to measure on.
    """

    divided: bool
    train: Callable[[], Part]
    test: Callable[[], Part]


@contextmanager
def open_source(spec: str, *, download: bool = False) -> Iterator[Source]:
    """Open the images that ``--data`` names; an unpacked zip file is removed when the context ends.

    Args:
        spec: A folder with one subfolder per class; a folder with two parts of that kind (:func:`parts_of`);
            a zip file of either; ``cifar10:PATH``, ``gtsrb:PATH`` or ``imagenet:PATH``. An existing path
            takes precedence, so that a folder may have a colon in its name.
        download: Whether to download CIFAR-10 or GTSRB if they are missing.

    Raises:
        ImagesError: The images are missing, damaged or not safe to unpack.
        UsageError: ``download`` is set for a source that cannot be downloaded.
    """
    path = Path(spec)
    name, _, place = spec.partition(":")
    if path.exists():
        if download:
            raise UsageError(f"--download has nothing to fetch for {spec}", "it is for cifar10: and gtsrb:")
        if path.is_dir():
            yield _from_folder(path, path, None)
        else:
            hidden = Hidden()
            with unpacked(path, hidden) as folder:
                top = _class_root(folder)
                yield _from_folder(top, path / top.relative_to(folder), hidden)
    elif name in NAMED and place:
        yield _from_name(name, Path(place).expanduser(), download=download)
    elif ":" in spec and name not in NAMED and name.isidentifier() and len(name) > 1:  # "C:" is a drive
        raise ImagesError(f"there is no data set called {name}, and no folder {spec}", _HINT)
    else:
        raise ImagesError(f"{spec} " + ("names no folder" if name in NAMED else "does not exist"), _HINT)


def _from_folder(folder: Path, root: Path, hidden: Hidden | None) -> Source:
    """The source of a folder.

    Args:
        folder: The folder.
        root: Its path in messages.
        hidden: The hidden files of its zip file; None for a folder that was not unpacked.
    """
    parts = parts_of(folder, root)
    if parts is None:
        whole = partial(_list, folder, root, hidden)
        return Source(divided=False, train=whole, test=whole)
    train, test = parts
    return Source(
        divided=True,
        train=partial(_list, folder / train, root / train, hidden),
        test=partial(_list, folder / test, root / test, hidden),
    )


def parts_of(folder: Path, root: Path | None = None) -> tuple[str, str] | None:
    """The names of the folders to train on and to measure on; None where the subfolders are classes.

    A class may be called "train", too; then no folders of classes are in it.

    Args:
        folder: The folder.
        root: Its path in messages, where it was unpacked from a zip file.

    Raises:
        ImagesError: One of the two is missing, or something else lies beside them.
    """
    names = subfolders(folder)
    parts = {name.lower(): name for name in names if subfolders(folder / name)}
    train, test = (next((parts[one] for one in which if one in parts), None) for which in (_TRAIN, _TEST))
    others = [name for name in names if name.lower() not in {*_TRAIN, *_TEST}]
    if train is None and (test is None or others):
        return None
    if train is None or test is None or others:
        there = f"{train} and {others[0]}" if train and others else train or test
        problem = "which is neither" if train and others else "and no other part"
        raise ImagesError(
            f"{root or folder} has {there}, {problem}",
            "name a folder with one subfolder for each class, or with train and test folders of such alone",
        )
    return train, test


def _list(folder: Path, root: Path, hidden: Hidden | None) -> Part:
    if hidden is None:
        return list_labelled(folder)
    return replace(list_labelled(folder, root=root), hidden=hidden)


def _from_name(name: str, root: Path, *, download: bool) -> Source:
    if name == "imagenet":
        if download:
            raise UsageError(
                "ImageNet is not fetched by --download", "image-net.org gives it to who registers"
            )
        return Source(
            divided=True, train=partial(_imagenet, root, "train"), test=partial(_imagenet, root, "val")
        )
    read = published.cifar10 if name == "cifar10" else published.gtsrb
    return Source(
        divided=True,
        train=partial(read, root, train=True, download=download),
        test=partial(read, root, train=False, download=download),
    )


def _imagenet(root: Path, part: str) -> Part:
    folder = root / part
    if not folder.is_dir():
        raise ImagesError(
            f"there is no ImageNet in {root}: {folder} is no folder",
            "name the folder that holds train and val, each with one subfolder a class",
        )
    return list_labelled(folder)


def _class_root(folder: Path) -> Path:
    """The only subfolder, where it holds all class folders, as in many archives; else ``folder`` itself."""
    names = subfolders(folder)
    return folder / names[0] if len(names) == 1 and subfolders(folder / names[0]) else folder
