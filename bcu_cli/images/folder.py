"""A folder of pictures -> an ``ImageSet`` in memory: the one loader of cleanse, evaluate and attack."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding import Geometry, decode_many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

FEWEST_IMAGES = 32
FEW_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Decoded pictures, on the CPU.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``, or None for a folder whose subfolders mean nothing.
        classes: Class names in label order; empty where there are no labels.
        skipped: Files that were no readable picture, with the reason.
        found: Number of files that the folder holds, before any drawing.
        root: The folder.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()
    found: int = 0
    root: Path = Path()

    def __len__(self) -> int:
        return self.images.shape[0]

    def subset(self, index: Tensor) -> ImageSet:
        """The pictures (and labels) at ``index``, int64 ``[M]``."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels)


def list_files(root: Path) -> list[Path]:
    """Every file below ``root`` in a fixed order; links are followed, loops are not.

    Raises:
        ImagesError: ``root`` is missing, is a file, or cannot be read.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise ImagesError(f"{root} {what}", "name a folder that holds pictures")
    return list(_walk(root, set()))


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ImagesError(f"{folder} cannot be read: {error.strerror}", "check its permissions") from error
    for entry in entries:
        if entry.is_dir():
            yield from _walk(Path(entry.path), seen)
        elif entry.is_file():
            yield Path(entry.path)


def load_unlabeled(
    root: Path,
    geometry: Geometry,
    *,
    at_most: int | None = None,
    generator: torch.Generator,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Every picture below a folder; subfolders mean nothing.

    Args:
        root: The folder, of any depth.
        geometry: What each picture becomes.
        at_most: Draw this many files at random where there are more.
        generator: Source of that draw.
        on_progress: Called with (files decoded since the last call, files in all).

    Raises:
        ImagesError: No folder, or fewer than ``FEWEST_IMAGES`` readable pictures.
    """
    files = list_files(root)
    found = len(files)
    if at_most is not None and found > at_most:
        chosen = torch.randperm(found, generator=generator)[:at_most].sort().values.tolist()
        files = [files[i] for i in chosen]
    images, _, skipped = _decode(files, geometry, on_progress)
    if len(images) < FEWEST_IMAGES:
        raise ImagesError(
            f"{root} holds {len(images)} readable pictures; at least {FEWEST_IMAGES} are needed"
            + (f" ({len(skipped)} files are no pictures, first {skipped[0][0].name})" if skipped else ""),
            f"any photos will do, best {FEW_IMAGES} or more; JPEG, PNG, WebP, BMP, GIF and TIFF are read",
        )
    return ImageSet(images=images, skipped=tuple(skipped), found=found, root=root)


def sample(root: Path, geometry: Geometry, count: int = 256) -> Tensor:
    """Some pictures spread evenly over a folder: float32 ``[N, C, H, W]`` in [0, 1], N at most ``count``.

    Raises:
        ImagesError: No folder, or no readable picture in what was tried.
    """
    files = list_files(root)
    images, _, _ = _decode(files[:: max(1, len(files) // count)][:count], geometry, None)
    if len(images) == 0:
        raise ImagesError(f"{root} holds no readable pictures", "JPEG, PNG, WebP, BMP, GIF and TIFF are read")
    return images.float() / 255.0


def load_labelled(
    root: Path,
    geometry: Geometry,
    *,
    classes: tuple[str, ...] = (),
    every_class: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Pictures whose label is the name of their subfolder directly below ``root``.

    Args:
        root: The folder that holds one subfolder a class.
        geometry: What each picture becomes.
        classes: Names of the classes in label order, where the model says them; without them the
            subfolders in alphabetical order are the labels, as in torchvision's ``ImageFolder``. A folder
            need not hold all of them.
        every_class: Whether a class without a picture is an error, as it is for training.
        on_progress: Called with (files decoded since the last call, files in all).

    Raises:
        ImagesError: No class subfolders, no pictures (of any class, or of one), or a subfolder that the
            model has no class for.
    """
    files = list_files(root)
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if not names:
        raise ImagesError(
            f"{root} has no class subfolders", "put the pictures of each class into a subfolder of its name"
        )
    if classes and (strangers := sorted(set(names) - set(classes))):
        raise ImagesError(
            f"{root} has a subfolder {strangers[0]}, which is none of the model's classes",
            f"the model's classes are {_shorten(classes)}",
        )
    order = classes or tuple(names)
    label_of = {name: label for label, name in enumerate(order)}
    files = [file for file in files if file.parent != root]
    images, kept, skipped = _decode(files, geometry, on_progress)
    labels = torch.tensor([label_of[files[i].relative_to(root).parts[0]] for i in kept], dtype=torch.int64)
    counts = torch.bincount(labels, minlength=len(order)).tolist()
    if len(images) == 0 or (every_class and 0 in counts):
        empty = order[counts.index(0)]
        raise ImagesError(
            f"class {empty} in {root} has no readable picture", "add some, or remove the subfolder"
        )
    return ImageSet(
        images=images, labels=labels, classes=order, skipped=tuple(skipped), found=len(files), root=root
    )


def has_split(root: Path) -> bool:
    """Whether a folder holds a training and a test set, as subfolders ``train`` and ``test`` alone."""
    return root.is_dir() and {entry.name for entry in root.iterdir() if entry.is_dir()} == {"train", "test"}


def hold_out(
    data: ImageSet, share: float, *, most: int, generator: torch.Generator
) -> tuple[ImageSet, ImageSet]:
    """Divide a set at random: what remains, and about ``share`` of it held out (8 to ``most`` images)."""
    order = torch.randperm(len(data), generator=generator)
    count = min(max(8, round(share * len(data))), most)
    return data.subset(order[count:].sort().values), data.subset(order[:count].sort().values)


def _decode(
    files: list[Path], geometry: Geometry, on_progress: Callable[[int, int], None] | None
) -> tuple[Tensor, list[int], list[tuple[Path, str]]]:
    report = (lambda done: on_progress(done, len(files))) if on_progress else None
    pictures, kept, skipped = decode_many(files, geometry, on_progress=report)
    return torch.from_numpy(pictures), kept, skipped


def _shorten(names: tuple[str, ...], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"
