"""The cells of a plan: what each is, what decides it, and what it is called."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

Target = int | str
"""The index of a class, or ``next``."""
OWN = "own"
"""Images of the data set that the network was trained on."""
KEYS = ("data", "arch", "attack", "target", "seed", "defense", "images", "max-images")
"""What tells the cells of a plan apart, and what --only may name."""
PAPERS_METHOD = "bcu"
"""The method of a defense that names none."""
JUDGING = ("auto",)
"""Methods with a verdict; what they leave is measured whatever it is."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Labelled images to train and to measure on, and the defense set.

    Args:
        name: In the plan.
        folder: Below the root of all data; it holds ``train`` and ``test``, each with a folder a class.
        defense_images: Images that are taken out of ``defense_from`` and given to the defenses.
        defense_from: ``test``, as in the paper, or ``train``.
        train_images: At most so many of the others are trained on, of each class its share.
        test_images: The same to measure on.
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
        name: In the plan.
        folder: Below the root of all data; empty for the defense set of the cell's data set.
        classes: Draw images of so many classes alone: a class is the subfolder, or what stands before the
            first ``_`` of the file name.
        per_class: Draw so many of each.
    """

    name: str
    folder: str = ""
    classes: int | None = None
    per_class: int | None = None


@dataclass(frozen=True, kw_only=True)
class Backdoored:
    """A backdoored network that cells start from.

    Args:
        data: What it is trained on.
        arch: Its architecture.
        label: The attack's name in the plan.
        attack: The attack.
        options: Of ``bcu attack``.
        target: The class that the trigger leads to.
        seed: Of its training.
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
        """What its weights depend on."""
        return {key: value for key, value in asdict(self).items() if key != "label"}

    @property
    def name(self) -> str:
        """That of its files, which other plans may share."""
        readable = f"{self.data.name}-{self.arch}-{self.label}-t{self.target}-s{self.seed}"
        return f"{readable.replace('/', '_')}-{fingerprint(self.decides)[:8]}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One defense of one network, and its measurement.

    Args:
        model: The network.
        defense: The defense's name in the plan.
        options: Of ``bcu cleanse``; without a method it is ``PAPERS_METHOD``.
        images: What the defense is given.
        max_images: So many of them.
    """

    model: Backdoored
    defense: str
    options: dict[str, Any]
    images: Images
    max_images: int

    @property
    def decides(self) -> dict[str, Any]:
        """What its figures depend on."""
        return {
            "model": self.model.decides,
            "cleanse": self.options,
            "images": asdict(self.images) | {"name": ""},
            "max_images": self.max_images,
        }

    @property
    def command(self) -> dict[str, Any]:
        """The options as ``bcu cleanse`` is given them: it has another default, and writes no bad result."""
        options = {"method": PAPERS_METHOD} | self.options
        return options | ({"force": True} if options["method"] in JUDGING else {})

    @property
    def coordinates(self) -> dict[str, Any]:
        """Its place in the plan, by ``KEYS``."""
        model = self.model
        model_part = (model.data.name, model.arch, model.label, model.target, model.seed)
        return dict(zip(KEYS, (*model_part, self.defense, self.images.name, self.max_images), strict=True))

    @property
    def name(self) -> str:
        """That of its file."""
        data, arch, attack, target, seed, *rest = (
            str(v).replace("/", "_") for v in self.coordinates.values()
        )
        return "-".join([data, arch, attack, f"t{target}", f"s{seed}", *rest])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan in one of its sizes.

    Args:
        name: That of its file.
        size: The size chosen; empty where it has none.
        title: For people.
        note: What to know of it; may be empty.
        paper: The table of the paper that it repeats; may be empty.
        cells: All of them, in their order.
    """

    name: str
    size: str
    title: str
    note: str
    paper: str
    cells: tuple[Cell, ...] = field(repr=False)

    @property
    def folder(self) -> str:
        """That of its cells, below ``cells``."""
        return f"{self.name}.{self.size}" if self.size else self.name


def fingerprint(values: Any) -> str:
    """SHA-256 over plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
