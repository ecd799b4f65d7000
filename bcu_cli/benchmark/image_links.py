"""The images of a plan as folders of links, for training, measuring and the defenses.

The paper (section 4.1) divides the test set of CIFAR-10 and GTSRB into 5,000 defense images and the rest.
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bcu_cli.benchmark.cell import OWN, fingerprint
from bcu_cli.errors import ImagesError
from bcu_cli.images.sources.listing import list_files
from bcu_cli.report.files_read import files_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bcu_cli.benchmark.cell import Cell, DataSet, Images

    Links = Iterator[tuple[Path, Path]]
_SEED = 0
"""Seed of all draws of images, the same for all seeds of a plan."""
_LABELLED, _DEFENSE = "labelled", "defense"


class ImageLinks:
    """The folders of images for the cells of a plan.

    Args:
        root: The data root, which holds the folders of a plan.
        links: Folder for the links.
    """

    def __init__(self, root: Path, links: Path) -> None:
        self._root, self._links = root, links
        self._counts: dict[Path, int] = {}
        self._digests: dict[Path, str] = {}
        self._prepared: set[Path] = set()

    def labelled(self, data: DataSet) -> Path:
        """The folder with ``train`` and ``test``, each with one subfolder for each class."""
        return self._drawn(data) / _LABELLED

    def of(self, cell: Cell) -> Path:
        """The folder of images for a cell's defense; only methods with labels use its subfolders."""
        images = cell.images
        if images.name == OWN:
            return self._drawn(cell.model.data) / _DEFENSE
        return self._root / images.folder if images.classes is None else self._drawn(images)

    def missing(self, cells: Iterable[Cell]) -> list[Path]:
        """Folders that the plan names and that do not exist."""
        named = {one.folder for cell in cells for one in (cell.model.data, cell.images) if one.folder}
        return [self._root / folder for folder in sorted(named) if not (self._root / folder).is_dir()]

    def prepare(self, cells: Iterable[Cell]) -> None:
        """Create links that are missing or broken.

        Raises:
            ImagesError: Images that a cell needs are missing, or too few.
        """
        cells = list(cells)
        if missing := self.missing(cells):
            hint = "unpack the images there, or name their folder with --data-root"
            raise ImagesError(f"there is no folder {missing[0]}", hint)
        for data in {cell.model.data.name: cell.model.data for cell in cells}.values():
            self._make(self._drawn(data), self._root / data.folder, partial(_divide, data))
        for images in {cell.images.name: cell.images for cell in cells}.values():
            if images.classes is not None:
                self._make(self._drawn(images), self._root / images.folder, partial(_draw_classes, images))
        for cell in cells:
            self._require_enough(cell)
            self._prepared |= {self.labelled(cell.model.data), self.of(cell)}

    def digests(self, cell: Cell) -> dict[str, str]:
        """A digest of the names and sizes of a cell's images, by what they serve for.

        Folders that were not prepared have none: their images may be gone.
        """
        folders = {_LABELLED: self.labelled(cell.model.data), _DEFENSE: self.of(cell)}
        return {name: self._digest(folder) for name, folder in folders.items() if folder in self._prepared}

    def _digest(self, folder: Path) -> str:
        if folder not in self._digests:
            (entry,) = files_read([folder])
            self._digests[folder] = entry["names_and_sizes_sha256"]
        return self._digests[folder]

    def _require_enough(self, cell: Cell) -> None:
        """Refuse a folder with fewer images than the cell is named after."""
        images = cell.images
        if images.name == OWN or images.classes is not None:
            return  # the plan has been checked
        folder = self._root / images.folder
        if (count := self._count(folder)) < cell.max_images:
            raise ImagesError(
                f"{folder} holds {count} images, not {cell.max_images}", "lower max-images in the plan"
            )

    def _count(self, folder: Path) -> int:
        """Number of image files in a folder, which is listed once."""
        if folder not in self._counts:
            self._counts[folder] = len(list_files(folder)[0])
        return self._counts[folder]

    def _drawn(self, one: DataSet | Images) -> Path:
        return self._links / f"{one.name}-{fingerprint(asdict(one))[:8]}"

    def _make(self, folder: Path, source: Path, links: Callable[[Path], Links]) -> None:
        """Create a folder of links atomically, unless it holds the same links already."""
        wanted = {str(place): target.resolve() for place, target in links(source)}
        if _links(folder) == wanted:
            return
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        for leftover in (folder, unfinished):
            shutil.rmtree(leftover, ignore_errors=True)
        for place, target in wanted.items():
            link = unfinished / place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        unfinished.rename(folder)


def _links(folder: Path) -> dict[str, Path]:
    """The links below a folder, and where they point to."""
    found = (path for path in folder.rglob("*") if path.is_symlink())
    return {str(path.relative_to(folder)): path.resolve() for path in found}


def _divide(data: DataSet, source: Path) -> Links:
    """Links, as (path of the link, image), for training, measuring and the defense."""
    parts = {}
    for part, limit in (("train", data.train_images), ("test", data.test_images)):
        files = sorted(file for file in list_files(source / part)[0] if file.parent.parent == source / part)
        if part == data.defense_from:
            if len(files) <= data.defense_images:
                what = f"{source / part} holds {len(files)} images, not more than {data.defense_images}"
                raise ImagesError(what, f"lower defense-images of {data.name} in the plan")
            random.Random(_SEED).shuffle(files)  # noqa: S311 - not for security
            parts["defense"], files = files[: data.defense_images], files[data.defense_images :]
        if not files:
            hint = "it must hold train and test, each with one subfolder of images a class"
            raise ImagesError(f"{source / part} holds no images in subfolders", hint)
        parts[part] = files if limit is None else _stratified(files, limit)
    places = {"train": Path(_LABELLED, "train"), "test": Path(_LABELLED, "test"), "defense": Path(_DEFENSE)}
    for part, files in parts.items():
        for file in files:
            yield places[part] / file.parent.name / file.name, file


def _stratified(files: Sequence[Path], count: int) -> list[Path]:
    """A random sample of ``count`` files, in proportion to the classes."""
    by_class = defaultdict(list)
    for file in files:
        by_class[file.parent.name].append(file)
    placed = []
    for name in sorted(by_class):
        of_class = sorted(by_class[name])
        random.Random(f"{_SEED} {name}").shuffle(of_class)  # noqa: S311 - not for security
        placed += [((rank + 0.5) / len(of_class), name, file) for rank, file in enumerate(of_class)]
    return [file for _, _, file in sorted(placed)[:count]]


def _draw_classes(images: Images, source: Path) -> Links:
    """Links to ``per_class`` images of each of ``classes`` classes, drawn at random."""
    by_class = defaultdict(list)
    for file in sorted(list_files(source)[0]):
        inner = file.relative_to(source).parts
        by_class[inner[0] if len(inner) > 1 else file.name.partition("_")[0]].append(file)
    enough = [name for name, files in sorted(by_class.items()) if len(files) >= (images.per_class or 0)]
    if len(enough) < (images.classes or 0):
        what = f"{source} has {len(enough)} classes of {images.per_class} images or more"
        raise ImagesError(f"{what}, not {images.classes}", f"lower classes or per-class of {images.name}")
    chance = random.Random(_SEED)  # noqa: S311 - not for security
    for name in chance.sample(enough, images.classes or 0):
        for file in chance.sample(by_class[name], images.per_class or 0):
            yield Path(name) / file.name, file
