"""Loading of images from a folder or a listing into memory, as an ``ImageSet``; all commands use it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding.image import FORMATS_HINT, Geometry
from bcu_cli.images.decoding.processes import decode_many
from bcu_cli.images.sources.hidden import Hidden, is_hidden
from bcu_cli.images.sources.listing import list_files, list_images, named
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bcu_cli.images.decoding.image import RawImage
    from bcu_cli.images.sources.listing import Listing

FEWEST_IMAGES = 32
_SYNSET = re.compile(r"n\d{8}", re.ASCII)
_IMAGENET_CLASSES = 1000
_ROWS = 512
"""Number of images that are moved at a time within the memory of a set."""


def is_imagenet(classes: Sequence[str]) -> bool:
    """Whether classes are those of ImageNet by WordNet number, whose order every model of ImageNet keeps."""
    return len(classes) == _IMAGENET_CLASSES and all(map(_SYNSET.fullmatch, classes))


def _renamed(labels: Sequence[str], classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Labels with the model's names in place of the names of the folders, which are taken in their order."""
    name_of = dict(zip(sorted(classes), names, strict=True))
    return [name_of[label] for label in labels]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Decoded images, on the CPU.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``; None for unlabeled images.
        classes: Class names in label order; empty where there are no labels.
        skipped: Files that are no readable image, with the reason.
        found: Number of files in the folder, before any random selection.
        root: The folder.
        hidden: Files and folders that were skipped for their names.
        scaled: How values of more than 8 bits were scaled, each with the first such file.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()
    found: int = 0
    root: Path = Path()
    hidden: Hidden = field(default_factory=Hidden)
    scaled: tuple[tuple[Path, str], ...] = ()

    def __len__(self) -> int:
        return self.images.shape[0]

    def subset(self, index: Tensor) -> ImageSet:
        """The images (and labels) at ``index``, int64 ``[M]``."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels)


def find_unlabeled(root: Path, *, at_most: int | None = None, generator: torch.Generator) -> Listing:
    """List every file below a folder, and every image in the tar archives there, without opening them.

    Args:
        root: A folder of any depth, whose subfolders are no classes, or a tar archive.
        at_most: Number of images to select at random where there are more; None takes all.
        generator: Generator of the random selection.

    Raises:
        ImagesError: The path is neither a folder nor a tar archive.
    """
    listing = list_images(root)
    if at_most is None or len(listing) <= at_most:
        return listing
    return listing.picked(torch.randperm(len(listing), generator=generator)[:at_most].sort().values.numpy())


def load(
    listing: Listing, geometry: Geometry, *, on_progress: Callable[[int, int], None] | None = None
) -> ImageSet:
    """Decode the images of a listing.

    Args:
        listing: The images.
        geometry: Size and cropping of the decoded images.
        on_progress: Called with (files decoded since the last call, files in all).
    """
    notes: dict[str, int] = {}
    images, _, skipped = _decode(listing, geometry, on_progress, notes)
    unreadable = tuple((named(listing[i]), reason) for i, reason in skipped)
    return ImageSet(
        images=images,
        skipped=listing.faults + unreadable,
        found=listing.found,
        root=listing.root,
        hidden=listing.hidden,
        scaled=tuple((named(listing[i]), note) for note, i in notes.items()),
    )


def load_unlabeled(
    root: Path,
    geometry: Geometry,
    *,
    at_most: int | None = None,
    generator: torch.Generator,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Find images as ``find_unlabeled`` does, and decode them.

    Raises:
        ImagesError: There is no such folder, or it has fewer than ``FEWEST_IMAGES`` readable images.
    """
    listing = find_unlabeled(root, at_most=at_most, generator=generator)
    data = load(listing, geometry, on_progress=on_progress)
    require_enough(len(data), data)
    return data


def require_enough(readable: int, data: ImageSet) -> None:
    """Raise ``ImagesError`` if fewer than ``FEWEST_IMAGES`` images of a set are readable."""
    if readable >= FEWEST_IMAGES:
        return
    count = len(data.skipped)
    files = number_of(count, "file is no image", "files are no images")
    unreadable = f" ({files}, first {data.skipped[0][0].name})" if count else ""
    there = number_of(readable, "readable image")
    raise ImagesError(
        f"{data.root} holds {there}; at least {FEWEST_IMAGES} are needed{unreadable}",
        f"photos like what the model was made for will do, best 1,000 or more; {FORMATS_HINT}",
    )


def sample(listing: Listing, geometry: Geometry, count: int = 256) -> Tensor:
    """Decode at most ``count`` images, spread evenly over a listing: float32 ``[N, C, H, W]`` in [0, 1].

    Raises:
        ImagesError: None of these images is readable.
    """
    return _sample(listing.root, listing, geometry, count)


def _sample(root: Path, raw_images: Sequence[RawImage], geometry: Geometry, count: int) -> Tensor:
    chosen = raw_images[:: max(1, len(raw_images) // count)][:count]
    images, _, skipped = _decode(chosen, geometry, None, {})
    if len(images) == 0:
        why = f": none of the {len(chosen)} tried, for the first {skipped[0][1]}" if skipped else ""
        raise ImagesError(f"{root} holds no readable images{why}", FORMATS_HINT)
    return images.float() / 255.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """Labelled images that are not decoded yet, such as the training part of a data set.

    Args:
        root: Path of the images, as the user gave it.
        raw_images: Files, or pixels that need no decoding.
        labels: The class name of each image.
        classes: The names of all classes, in label order unless the model gives another order.
        unpacked: Temporary folder with the files, where ``root`` is in a zip file.
        faults: Broken links, with the reason.
        hidden: Files and folders that were skipped for their names.
    """

    root: Path
    raw_images: Sequence[RawImage]
    labels: Sequence[str]
    classes: tuple[str, ...]
    unpacked: Path | None = None
    faults: tuple[tuple[Path, str], ...] = ()
    hidden: Hidden = field(default_factory=Hidden)

    def load(
        self,
        geometry: Geometry,
        *,
        classes: tuple[str, ...] = (),
        every_class: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> ImageSet:
        """Decode the images.

        Args:
            geometry: Size and cropping of the decoded images.
            classes: The model's class names in label order; empty where it gives none. Some of these classes
                may have no image. The 1000 folders of ImageNet, named by
                WordNet numbers, are the classes in this order whatever the model calls them.
            every_class: Whether to refuse a single class, and a class without images, as for training.
            on_progress: Called with (images decoded since the last call, images in all).

        Raises:
            ImagesError: There are no images, a class is refused, or the model does not have a class.
        """
        if is_imagenet(self.classes) and len(classes) == len(self.classes) and not is_imagenet(classes):
            part = replace(self, classes=classes, labels=_renamed(self.labels, self.classes, classes))
            return part.load(geometry, classes=classes, every_class=every_class, on_progress=on_progress)
        if classes and (unknown := sorted(set(self.classes) - set(classes))):
            raise ImagesError(
                f"{self.root} has a class {unknown[0]}, which is none of the model's classes",
                f"the model's classes are {_shorten(classes)}",
            )
        order = classes or self.classes
        if every_class and len(order) == 1:
            raise ImagesError(
                f"{self.root} has one class alone, {order[0]}: there is nothing to take it for",
                "put the images of two classes or more into subfolders of their names",
            )
        label_of = {name: label for label, name in enumerate(order)}
        notes: dict[str, int] = {}
        images, kept, skipped = _decode(self.raw_images, geometry, on_progress, notes)
        labels = torch.tensor([label_of[self.labels[i]] for i in kept], dtype=torch.int64)
        counts = torch.bincount(labels, minlength=len(order)).tolist()
        if len(images) == 0 or (every_class and 0 in counts):
            empty = order[counts.index(0)]
            raise ImagesError(
                f"class {empty} in {self.root} has no readable image", "add some, or remove the subfolder"
            )
        return ImageSet(
            images=images,
            labels=labels,
            classes=order,
            skipped=self.faults + tuple((self._named(self.raw_images[i]), reason) for i, reason in skipped),
            found=len(self.raw_images),
            root=self.root,
            hidden=self.hidden,
            scaled=tuple((self._named(self.raw_images[i]), note) for note, i in notes.items()),
        )

    def drawn(self, at_most: int, generator: torch.Generator) -> Part:
        """Select at most ``at_most`` images at random; the classes are kept."""
        order = torch.randperm(len(self.raw_images), generator=generator)[:at_most].sort().values.tolist()
        return replace(
            self, raw_images=[self.raw_images[i] for i in order], labels=[self.labels[i] for i in order]
        )

    def sample(self, geometry: Geometry, count: int = 256) -> Tensor:
        """Decode at most ``count`` images, spread evenly: float32 ``[N, C, H, W]`` in [0, 1].

        Raises:
            ImagesError: None of these images is readable.
        """
        return _sample(self.root, self.raw_images, geometry, count)

    def _named(self, image: RawImage) -> Path:
        """Path of an image below the ``root`` that the user gave."""
        if not isinstance(image, Path):
            return self.root
        return self.root / image.relative_to(self.unpacked) if self.unpacked else image


def list_labelled(folder: Path, *, root: Path | None = None) -> Part:
    """List the images of a folder that has one subfolder per class.

    The subfolders in alphabetical order are the classes, as in torchvision's ``ImageFolder``.

    Args:
        folder: The folder of the class subfolders.
        root: Path for messages, where the folder was unpacked from a zip file.

    Raises:
        ImagesError: There is no such folder, or it has no subfolders.
    """
    hidden = Hidden()
    files, faults = list_files(folder, hidden)
    names = subfolders(folder)
    if not names:
        raise ImagesError(
            f"{root or folder} has no class subfolders",
            "put the images of each class into a subfolder of its name",
        )
    files = [file for file in files if file.parent != folder]
    return Part(
        root=root or folder,
        raw_images=files,
        labels=[file.relative_to(folder).parts[0] for file in files],
        classes=tuple(names),
        unpacked=folder if root else None,
        faults=faults,
        hidden=hidden,
    )


def subfolders(folder: Path) -> list[str]:
    """Names of the subfolders of a folder that are not hidden, in alphabetical order."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def hold_out(
    data: ImageSet, share: float, *, most: int, generator: torch.Generator, in_place: bool = False
) -> tuple[ImageSet, ImageSet]:
    """Split a set at random into a remainder and a held-out set of 8 to ``most`` images.

    Args:
        data: The set.
        share: Share of images to hold out, in (0, 1).
        most: Largest number of images to hold out.
        generator: Generator of the random split.
        in_place: Whether the remainder overwrites the memory of ``data``.

    Returns:
        The remainder and the held-out set.
    """
    kept, apart = _split_index(len(data), share, most, generator)
    held_out = data.subset(apart)
    if not in_place:
        return data.subset(kept), held_out
    labels = None if data.labels is None else data.labels[kept]
    return replace(data, images=_compacted(data.images, kept), labels=labels), held_out


def divide(
    listing: Listing, share: float, *, most: int, generator: torch.Generator
) -> tuple[Listing, Listing]:
    """Split a listing as :func:`hold_out` splits decoded images."""
    kept, apart = _split_index(len(listing), share, most, generator)
    return listing.picked(kept.numpy()), listing.picked(apart.numpy())


def _split_index(number: int, share: float, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the images that remain and of those held out, each in ascending order."""
    order = torch.randperm(number, generator=generator)
    count = min(max(8, round(share * number)), most)
    return order[count:].sort().values, order[:count].sort().values


def _compacted(images: Tensor, index: Tensor) -> Tensor:
    """Move the images at an ascending index to the front of their tensor, a few at a time."""
    for start in range(0, len(index), _ROWS):
        part = index[start : start + _ROWS]
        images[start : start + len(part)] = images[part]
    return images[: len(index)]


def _decode(
    raw_images: Sequence[RawImage],
    geometry: Geometry,
    on_progress: Callable[[int, int], None] | None,
    notes: dict[str, int],
) -> tuple[Tensor, list[int], list[tuple[int, str]]]:
    report = (lambda done: on_progress(done, len(raw_images))) if on_progress else None
    decoded, kept, skipped = decode_many(raw_images, geometry, on_progress=report, notes=notes)
    return torch.from_numpy(decoded), kept, skipped


def _shorten(names: tuple[str, ...], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"
