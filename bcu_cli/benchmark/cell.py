"""The cells of a plan, with their names and the values that determine their results."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

Target = int | str
"""The index of a class, or ``next``."""
OWN = "own"
"""Name of the defense set of the network's own data set."""
KEYS = ("data", "arch", "attack", "target", "seed", "defense", "images", "max-images")
"""Coordinates of the cells of a plan, which --only may name."""
PAPERS_METHOD = "bcu"
"""Method of a defense that names none."""
CLEAN = "none"
"""The attack of a network without a backdoor."""
JUDGING = ("auto",)
"""Methods with a verdict; their result is measured whatever the verdict."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A labelled data set for training and measuring, and its defense set.

    Args:
        name: Name in the plan.
        folder: Folder below the data root, with ``train`` and ``test``, each with a subfolder for each class.
        defense_images: Number of images taken out of ``defense_from`` for the defenses.
        defense_from: ``test``, as in the paper, or ``train``.
        train_images: Most images to train on, in proportion to the classes; None is all.
        test_images: Most images to measure on, in proportion to the classes; None is all.
    """

    name: str
    folder: str
    defense_images: int
    defense_from: str
    train_images: int | None
    test_images: int | None


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images for a defense.

    Args:
        name: Name in the plan.
        folder: Folder below the data root; empty for the defense set of the cell's data set.
        classes: Number of classes to draw, None for all. The class of an image is its subfolder, or the part
            of its file name before the first ``_``.
        per_class: Number of images to draw of each class.
    """

    name: str
    folder: str = ""
    classes: int | None = None
    per_class: int | None = None


@dataclass(frozen=True, kw_only=True)
class Backdoored:
    """A backdoored network that cells start from.

    Args:
        data: Data set of its training.
        arch: Architecture.
        label: Name of the attack in the plan.
        attack: The attack.
        options: Options of ``bcu attack``.
        target: Target class of the trigger.
        seed: Seed of its training.
    """

    data: DataSet
    arch: str
    label: str
    attack: str
    options: dict[str, Any]
    target: Target
    seed: int

    @property
    def decides(self) -> dict[str, Any]:
        """The values that determine its weights."""
        return {key: value for key, value in asdict(self).items() if key != "label"}

    @property
    def name(self) -> str:
        """Name of its files, which other plans may share."""
        readable = f"{self.data.name}-{self.arch}-{self.label}-t{self.target}-s{self.seed}"
        return f"{readable.replace('/', '_')}-{fingerprint(self.decides)[:8]}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One defense of one network, and its measurement.

    Args:
        model: The network.
        defense: Name of the defense in the plan.
        options: Options of ``bcu cleanse``; the default method is ``PAPERS_METHOD``.
        images: Images for the defense.
        max_images: Most of these images.
    """

    model: Backdoored
    defense: str
    options: dict[str, Any]
    images: Images
    max_images: int

    @property
    def decides(self) -> dict[str, Any]:
        """The values that determine its results."""
        return {
            "model": self.model.decides,
            "cleanse": self.options,
            "images": asdict(self.images) | {"name": ""},
            "max_images": self.max_images,
        }

    @property
    def command(self) -> dict[str, Any]:
        """The options for ``bcu cleanse``, with the method, and with ``force`` for methods with a verdict."""
        options = {"method": PAPERS_METHOD} | self.options
        return options | ({"force": True} if options["method"] in JUDGING else {})

    @property
    def coordinates(self) -> dict[str, Any]:
        """The coordinates of the cell in the plan, by ``KEYS``."""
        model = self.model
        model_part = (model.data.name, model.arch, model.label, model.target, model.seed)
        return dict(zip(KEYS, (*model_part, self.defense, self.images.name, self.max_images), strict=True))

    @property
    def name(self) -> str:
        """Name of its file."""
        data, arch, attack, target, seed, *rest = (
            str(v).replace("/", "_") for v in self.coordinates.values()
        )
        return "-".join([data, arch, attack, f"t{target}", f"s{seed}", *rest])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan in one of its sizes.

    Args:
        name: Name of its file without suffix.
        size: The chosen size; empty where the plan has no sizes.
        title: Title for people.
        note: Remark for people; may be empty.
        paper: The table of the paper that the plan reproduces; may be empty.
        cells: All cells in order.
    """

    name: str
    size: str
    title: str
    note: str
    paper: str
    cells: tuple[Cell, ...] = field(repr=False)

    @property
    def folder(self) -> str:
        """Name of the folder of its cells, below ``cells``."""
        return f"{self.name}.{self.size}" if self.size else self.name


def fingerprint(values: Any) -> str:
    """SHA-256 over plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
