"""Listings of the images in a folder or tar archive; a million names take tens of MB."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding.image import Member
from bcu_cli.images.sources.hidden import Hidden, is_hidden
from bcu_cli.images.sources.tar import DamagedTarError, members

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TAR = ".tar"
"""Suffix of the tar archives in a folder."""

_NO_MEMBER = -1
"""Offset of an image that is a file, not a member of an archive."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing(Sequence["Path | Member"]):
    """Images that were found, and not opened yet.

    Args:
        root: The folder or the archive.
        places: The folders and archives that hold the images.
        place: Index into ``places`` for each image, int64 ``[N]``.
        names: The concatenated names of the images, in the encoding of the file system.
        ends: End of each name in ``names``, int64 ``[N]``.
        offsets: Offset of each image in its archive, int64 ``[N]``; negative for a file.
        sizes: Bytes of each image in its archive, int64 ``[N]``.
        chosen: Index of the selected images, in their order, int64 ``[M]``.
        faults: Broken links and archives that could not be read to their end, with the reason.
        hidden: Files and folders that were skipped for their names.
    """

    root: Path
    places: Sequence[str]
    place: NDArray[np.int64]
    names: bytes
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    chosen: NDArray[np.int64]
    faults: tuple[tuple[Path, str], ...]
    hidden: Hidden

    @property
    def found(self) -> int:
        """Number of images before any random selection."""
        return len(self.place)

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, position: int) -> Path | Member: ...
    @overload
    def __getitem__(self, position: slice) -> list[Path | Member]: ...
    def __getitem__(self, position: int | slice) -> Path | Member | list[Path | Member]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        i = int(self.chosen[position])
        place = self.places[self.place[i]]
        name = os.fsdecode(self.names[self.ends[i - 1] if i else 0 : self.ends[i]])
        if self.offsets[i] < 0:
            return Path(place, name)
        return Member(path=Path(place), offset=int(self.offsets[i]), size=int(self.sizes[i]), name=name)

    def picked(self, index: NDArray[np.int64]) -> Listing:
        """The images at ``index``, int64 ``[M]``."""
        return replace(self, chosen=self.chosen[index])

    def sha256(self) -> str:
        """SHA-256 of all names below the root, the offsets and sizes in archives, and the selection."""
        digest = hashlib.sha256(self.names)
        below = [os.path.relpath(place, self.root) for place in self.places]
        digest.update(os.fsencode("\0".join(below)))
        for numbers in (self.place, self.ends, self.offsets, self.sizes, self.chosen):
            digest.update(numbers.tobytes())
        return digest.hexdigest()


def named(image: Path | Member) -> Path:
    """Path of an image; that of a member continues the path of its archive."""
    return image.path / image.name if isinstance(image, Member) else image


class _Table:
    """A listing under construction."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self.place, self.ends, self.offsets, self.sizes = (array("q") for _ in range(4))
        self.names = bytearray()
        self.faults: list[tuple[Path, str]] = []
        self.hidden = Hidden()

    def add(self, name: str, offset: int = _NO_MEMBER, size: int = 0) -> None:
        """Add an image in the last of ``places``."""
        self.names += os.fsencode(name)
        self.place.append(len(self.places) - 1)
        self.ends.append(len(self.names))
        self.offsets.append(offset)
        self.sizes.append(size)

    def add_tar(self, path: Path) -> None:
        """Add the images of an archive, as far as it can be read."""
        self.places.append(str(path))
        try:
            for name, offset, size in members(path, self.hidden):
                self.add(name, offset, size)
        except DamagedTarError as error:
            self.faults.append((path, str(error)))
        except OSError as error:
            self.faults.append((path, error.strerror or str(error)))

    def listing(self, root: Path) -> Listing:
        """The listing of the images that were added."""
        columns = (self.place, self.ends, self.offsets, self.sizes)
        place, ends, offsets, sizes = (np.array(column, dtype=np.int64) for column in columns)
        return Listing(
            root=root,
            places=self.places,
            place=place,
            names=bytes(self.names),
            ends=ends,
            offsets=offsets,
            sizes=sizes,
            chosen=np.arange(len(place)),
            faults=tuple(self.faults),
            hidden=self.hidden,
        )


def list_images(root: Path) -> Listing:
    """List every file below a folder and the images in every ``.tar`` there, or the images of one archive.

    Hidden files are skipped, in archives too. Only names and the headers of archives are read.

    Raises:
        ImagesError: ``root`` is missing, a file that is no tar archive, or cannot be read.
    """
    table = _Table()
    if root.is_file():
        table.add_tar(root)
        if table.faults and not table.ends:
            raise ImagesError(
                f"{root} is a file, and no tar archive with images: {table.faults[0][1]}",
                "name a folder that holds images, or a .tar that is not compressed",
            )
        return table.listing(root)
    last = None
    for folder, name in _files(root, table.faults, table.hidden):
        if name.lower().endswith(TAR):
            table.add_tar(Path(folder, name))
            last = None
            continue
        if folder != last:
            table.places.append(folder)
            last = folder
        table.add(name)
    return table.listing(root)


def list_files(root: Path, hidden: Hidden | None = None) -> tuple[list[Path], tuple[tuple[Path, str], ...]]:
    """List every file below ``root`` in a fixed order.

    Links are followed, but not back to themselves or to a folder that is listed already.

    Args:
        root: The folder.
        hidden: Counts the hidden files and folders, which are skipped.

    Returns:
        The files, and the links that were skipped with the reason.

    Raises:
        ImagesError: ``root`` is missing, is a file, or cannot be read.
    """
    faults: list[tuple[Path, str]] = []
    files = [Path(folder, name) for folder, name in _files(root, faults, hidden or Hidden())]
    return files, tuple(faults)


def _files(root: Path, faults: list[tuple[Path, str]], hidden: Hidden) -> Iterator[tuple[str, str]]:
    """Yield the folder and the name of every file below ``root``, which itself may have a hidden name.

    Skipped links are added to ``faults``, hidden files and folders to ``hidden``.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise ImagesError(f"{root} {what}", "name a folder that holds images")
    seen = set[tuple[int, int]]()
    open_folders = [_inside(str(root), seen, faults, hidden)]
    while open_folders:  # no recursion: folders may be nested deeper than Python's limit
        for folder, name, is_folder in open_folders[-1]:
            if is_folder:
                below = os.path.join(folder, name)  # noqa: PTH118 - faster than Path
                open_folders.append(_inside(below, seen, faults, hidden))
                break
            yield folder, name
        else:
            open_folders.pop()


def _inside(
    folder: str, seen: set[tuple[int, int]], faults: list[tuple[Path, str]], hidden: Hidden
) -> Iterator[tuple[str, str, bool]]:
    """Yield each entry of a folder, sorted by name: the folder, the name, and whether it is a subfolder."""
    found = list[tuple[str, str, bool]]()
    try:
        itself = os.stat(folder)  # noqa: PTH116 - faster than Path
        if (itself.st_dev, itself.st_ino) in seen:
            faults.append((Path(folder), "it is a link to a folder that is listed already"))
            return iter(())
        seen.add((itself.st_dev, itself.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    hidden.add(Path(entry.path))
                    continue
                try:
                    is_folder = entry.is_dir()
                    if is_folder or entry.is_file():
                        found.append((folder, entry.name, is_folder))
                except OSError as error:  # a link to itself, or into a folder without permission
                    faults.append((Path(entry.path), error.strerror or str(error)))
    except OSError as error:
        raise ImagesError(f"{folder} cannot be read: {error.strerror}", "check its permissions") from error
    return iter(sorted(found))
