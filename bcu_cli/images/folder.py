"""Pictures, of a folder or listed otherwise -> an ``ImageSet`` in memory: the one loader of all commands."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding import FORMATS_HINT, Geometry, decode_many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from bcu_cli.images.decoding import Picture

FEWEST_IMAGES = 32


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
            + (
                f" ({len(skipped)} files are no pictures, first {files[skipped[0][0]].name})"
                if skipped
                else ""
            ),
            f"any photos will do, best 1,000 or more; {FORMATS_HINT}",
        )
    unreadable = tuple((files[i], reason) for i, reason in skipped)
    return ImageSet(images=images, skipped=unreadable, found=found, root=root)


def sample(root: Path, geometry: Geometry, count: int = 256) -> Tensor:
    """Some pictures spread evenly over a folder: float32 ``[N, C, H, W]`` in [0, 1], N at most ``count``.

    Raises:
        ImagesError: No folder, or no readable picture in what was tried.
    """
    return _sample(root, list_files(root), geometry, count)


def _sample(root: Path, pictures: Sequence[Picture], geometry: Geometry, count: int) -> Tensor:
    images, _, _ = _decode(pictures[:: max(1, len(pictures) // count)][:count], geometry, None)
    if len(images) == 0:
        raise ImagesError(f"{root} holds no readable pictures", FORMATS_HINT)
    return images.float() / 255.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """Labelled pictures that were found, and not decoded yet.

    Args:
        root: Where they are, in the user's words.
        pictures: Files, or pixels that need no decoding.
        labels: The name of each picture's class.
        classes: The names of all classes, in label order where the model does not say another.
        unpacked: The folder that stands for ``root``, where that is in a zip file.
    """

    root: Path
    pictures: Sequence[Picture]
    labels: Sequence[str]
    classes: tuple[str, ...]
    unpacked: Path | None = None

    def load(
        self,
        geometry: Geometry,
        *,
        classes: tuple[str, ...] = (),
        every_class: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> ImageSet:
        """Decode the pictures.

        Args:
            geometry: What each picture becomes.
            classes: Names of the classes in label order, where the model says them; there need not be
                pictures of all of them.
            every_class: Whether it is an error that there is one class alone, or one without a picture, as
                it is for training.
            on_progress: Called with (pictures decoded since the last call, pictures in all).

        Raises:
            ImagesError: No pictures (of any class, or of one), or a class that the model does not have.
        """
        if classes and (strangers := sorted(set(self.classes) - set(classes))):
            raise ImagesError(
                f"{self.root} has a class {strangers[0]}, which is none of the model's classes",
                f"the model's classes are {_shorten(classes)}",
            )
        order = classes or self.classes
        if every_class and len(order) == 1:
            raise ImagesError(
                f"{self.root} has one class alone, {order[0]}: there is nothing to take it for",
                "put the pictures of two classes or more into subfolders of their names",
            )
        label_of = {name: label for label, name in enumerate(order)}
        images, kept, skipped = _decode(self.pictures, geometry, on_progress)
        labels = torch.tensor([label_of[self.labels[i]] for i in kept], dtype=torch.int64)
        counts = torch.bincount(labels, minlength=len(order)).tolist()
        if len(images) == 0 or (every_class and 0 in counts):
            empty = order[counts.index(0)]
            raise ImagesError(
                f"class {empty} in {self.root} has no readable picture", "add some, or remove the subfolder"
            )
        return ImageSet(
            images=images,
            labels=labels,
            classes=order,
            skipped=tuple((self._named(self.pictures[i]), reason) for i, reason in skipped),
            found=len(self.pictures),
            root=self.root,
        )

    def drawn(self, at_most: int, generator: torch.Generator) -> Part:
        """At most so many of the pictures, drawn at random; the classes stay."""
        order = torch.randperm(len(self.pictures), generator=generator)[:at_most].sort().values.tolist()
        return replace(
            self, pictures=[self.pictures[i] for i in order], labels=[self.labels[i] for i in order]
        )

    def sample(self, geometry: Geometry, count: int = 256) -> Tensor:
        """Some pictures spread evenly over the classes, as the function ``sample`` has them of a folder."""
        return _sample(self.root, self.pictures, geometry, count)

    def _named(self, picture: Picture) -> Path:
        """A file as the user would name it."""
        if not isinstance(picture, Path):
            return self.root
        return self.root / picture.relative_to(self.unpacked) if self.unpacked else picture


def list_labelled(folder: Path, *, root: Path | None = None) -> Part:
    """Pictures whose label is the name of their subfolder directly below a folder.

    The subfolders in alphabetical order are the classes, as in torchvision's ``ImageFolder``.

    Args:
        folder: It holds one subfolder a class.
        root: What the user calls it, where it was unpacked from a zip file.

    Raises:
        ImagesError: No folder, or no class subfolders.
    """
    files = list_files(folder)
    names = subfolders(folder)
    if not names:
        raise ImagesError(
            f"{root or folder} has no class subfolders",
            "put the pictures of each class into a subfolder of its name",
        )
    files = [file for file in files if file.parent != folder]
    return Part(
        root=root or folder,
        pictures=files,
        labels=[file.relative_to(folder).parts[0] for file in files],
        classes=tuple(names),
        unpacked=folder if root else None,
    )


def subfolders(folder: Path) -> list[str]:
    """The names of the folders directly below one, in alphabetical order."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def hold_out(
    data: ImageSet, share: float, *, most: int, generator: torch.Generator
) -> tuple[ImageSet, ImageSet]:
    """Divide a set at random: what remains, and about ``share`` of it held out (8 to ``most`` images)."""
    order = torch.randperm(len(data), generator=generator)
    count = min(max(8, round(share * len(data))), most)
    return data.subset(order[count:].sort().values), data.subset(order[:count].sort().values)


def _decode(
    pictures: Sequence[Picture], geometry: Geometry, on_progress: Callable[[int, int], None] | None
) -> tuple[Tensor, list[int], list[tuple[int, str]]]:
    report = (lambda done: on_progress(done, len(pictures))) if on_progress else None
    decoded, kept, skipped = decode_many(pictures, geometry, on_progress=report)
    return torch.from_numpy(decoded), kept, skipped


def _shorten(names: tuple[str, ...], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"
