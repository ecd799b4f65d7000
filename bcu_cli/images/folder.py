"""Images, of a folder or listed otherwise -> an ``ImageSet`` in memory: the one loader of all commands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding import FORMATS_HINT, Geometry
from bcu_cli.images.hidden import Hidden, is_hidden
from bcu_cli.images.listing import list_files, list_pictures, named
from bcu_cli.images.processes import decode_many

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bcu_cli.images.decoding import Picture
    from bcu_cli.images.listing import Listing

FEWEST_IMAGES = 32
_ROWS = 512
"""Images that are moved at a time."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Decoded images, on the CPU.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``, or None for a folder whose subfolders mean nothing.
        classes: Class names in label order; empty where there are no labels.
        skipped: Files that were no readable image, with the reason.
        found: Number of files that the folder holds, before any drawing.
        root: The folder.
        hidden: Files and folders that were passed over for their names.
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
    """Every file below a folder, and every image of the tar archives there; nothing is opened yet.

    Args:
        root: A folder of any depth, whose subfolders mean nothing, or a tar archive.
        at_most: Draw this many at random where there are more.
        generator: Source of that draw.

    Raises:
        ImagesError: There is neither.
    """
    listing = list_pictures(root)
    if at_most is None or len(listing) <= at_most:
        return listing
    return listing.picked(torch.randperm(len(listing), generator=generator)[:at_most].sort().values.numpy())


def load(
    listing: Listing, geometry: Geometry, *, on_progress: Callable[[int, int], None] | None = None
) -> ImageSet:
    """Decode images that were found.

    Args:
        listing: The images.
        geometry: What each becomes.
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
        ImagesError: No folder, or fewer than ``FEWEST_IMAGES`` readable images.
    """
    listing = find_unlabeled(root, at_most=at_most, generator=generator)
    data = load(listing, geometry, on_progress=on_progress)
    require_enough(len(data), data)
    return data


def require_enough(readable: int, data: ImageSet) -> None:
    """Refuse a set whose folder holds too few images that can be read.

    Raises:
        ImagesError: They are fewer than ``FEWEST_IMAGES``.
    """
    if readable >= FEWEST_IMAGES:
        return
    count = len(data.skipped)
    strangers = f" ({count} files are no images, first {data.skipped[0][0].name})" if count else ""
    raise ImagesError(
        f"{data.root} holds {readable} readable images; at least {FEWEST_IMAGES} are needed{strangers}",
        f"photos like what the model was made for will do, best 1,000 or more; {FORMATS_HINT}",
    )


def sample(listing: Listing, geometry: Geometry, count: int = 256) -> Tensor:
    """At most ``count`` images spread evenly over those found: float32 ``[N, C, H, W]`` in [0, 1].

    Raises:
        ImagesError: No readable image in what was tried.
    """
    return _sample(listing.root, listing, geometry, count)


def _sample(root: Path, pictures: Sequence[Picture], geometry: Geometry, count: int) -> Tensor:
    some = pictures[:: max(1, len(pictures) // count)][:count]
    images, _, skipped = _decode(some, geometry, None, {})
    if len(images) == 0:
        why = f": none of the {len(some)} tried, for the first {skipped[0][1]}" if skipped else ""
        raise ImagesError(f"{root} holds no readable images{why}", FORMATS_HINT)
    return images.float() / 255.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """Labelled images that were found, and not decoded yet.

    Args:
        root: Where they are, in the user's words.
        pictures: Files, or pixels that need no decoding.
        labels: The name of each image's class.
        classes: The names of all classes, in label order where the model does not say another.
        unpacked: The folder that stands for ``root``, where that is in a zip file.
        faults: Links that lead nowhere, with the reason.
        hidden: Files and folders that were passed over for their names.
    """

    root: Path
    pictures: Sequence[Picture]
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
            geometry: What each image becomes.
            classes: Names of the classes in label order, where the model says them; there need not be
                images of all of them.
            every_class: Whether it is an error that there is one class alone, or one without an image, as
                it is for training.
            on_progress: Called with (images decoded since the last call, images in all).

        Raises:
            ImagesError: No images (of any class, or of one), or a class that the model does not have.
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
                "put the images of two classes or more into subfolders of their names",
            )
        label_of = {name: label for label, name in enumerate(order)}
        notes: dict[str, int] = {}
        images, kept, skipped = _decode(self.pictures, geometry, on_progress, notes)
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
            skipped=self.faults + tuple((self._named(self.pictures[i]), reason) for i, reason in skipped),
            found=len(self.pictures),
            root=self.root,
            hidden=self.hidden,
            scaled=tuple((self._named(self.pictures[i]), note) for note, i in notes.items()),
        )

    def drawn(self, at_most: int, generator: torch.Generator) -> Part:
        """At most so many of the images, drawn at random; the classes stay."""
        order = torch.randperm(len(self.pictures), generator=generator)[:at_most].sort().values.tolist()
        return replace(
            self, pictures=[self.pictures[i] for i in order], labels=[self.labels[i] for i in order]
        )

    def sample(self, geometry: Geometry, count: int = 256) -> Tensor:
        """Some images spread evenly over the classes, as the function ``sample`` has them of a folder."""
        return _sample(self.root, self.pictures, geometry, count)

    def _named(self, picture: Picture) -> Path:
        """A file as the user would name it."""
        if not isinstance(picture, Path):
            return self.root
        return self.root / picture.relative_to(self.unpacked) if self.unpacked else picture


def list_labelled(folder: Path, *, root: Path | None = None) -> Part:
    """Images whose label is the name of their subfolder directly below a folder.

    The subfolders in alphabetical order are the classes, as in torchvision's ``ImageFolder``.

    Args:
        folder: It holds one subfolder a class.
        root: What the user calls it, where it was unpacked from a zip file.

    Raises:
        ImagesError: No folder, or no class subfolders.
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
        pictures=files,
        labels=[file.relative_to(folder).parts[0] for file in files],
        classes=tuple(names),
        unpacked=folder if root else None,
        faults=faults,
        hidden=hidden,
    )


def subfolders(folder: Path) -> list[str]:
    """The names of the folders directly below one that are not hidden, in alphabetical order."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def hold_out(
    data: ImageSet, share: float, *, most: int, generator: torch.Generator, in_place: bool = False
) -> tuple[ImageSet, ImageSet]:
    """Divide a set at random: what remains, and about ``share`` of it held out (8 to ``most`` images).

    Args:
        data: The set.
        share: To be held out, in (0, 1).
        most: Images to be held out.
        generator: Decides which.
        in_place: Whether ``data`` is used up, so that what remains takes no more memory.
    """
    kept, apart = _divided(len(data), share, most, generator)
    held_out = data.subset(apart)
    if not in_place:
        return data.subset(kept), held_out
    labels = None if data.labels is None else data.labels[kept]
    return replace(data, images=_moved_up(data.images, kept), labels=labels), held_out


def divide(
    listing: Listing, share: float, *, most: int, generator: torch.Generator
) -> tuple[Listing, Listing]:
    """Divide images that were found as ``hold_out`` divides them decoded."""
    kept, apart = _divided(len(listing), share, most, generator)
    return listing.picked(kept.numpy()), listing.picked(apart.numpy())


def _divided(number: int, share: float, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of so many remain, and which are held out; both rising."""
    order = torch.randperm(number, generator=generator)
    count = min(max(8, round(share * number)), most)
    return order[count:].sort().values, order[:count].sort().values


def _moved_up(images: Tensor, index: Tensor) -> Tensor:
    """The images at a rising index, at the front of the same memory; a part at a time, from the first on."""
    for start in range(0, len(index), _ROWS):
        part = index[start : start + _ROWS]
        images[start : start + len(part)] = images[part]
    return images[: len(index)]


def _decode(
    pictures: Sequence[Picture],
    geometry: Geometry,
    on_progress: Callable[[int, int], None] | None,
    notes: dict[str, int],
) -> tuple[Tensor, list[int], list[tuple[int, str]]]:
    report = (lambda done: on_progress(done, len(pictures))) if on_progress else None
    decoded, kept, skipped = decode_many(pictures, geometry, on_progress=report, notes=notes)
    return torch.from_numpy(decoded), kept, skipped


def _shorten(names: tuple[str, ...], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"
