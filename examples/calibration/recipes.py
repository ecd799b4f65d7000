"""What is trained to calibrate `bcu inspect --scan`: 312 small networks, clean ones and backdoored ones.

Eight architectures, four data sets of images of 32x32, and ten kinds of backdoors with weak and strong
settings. Lengths of the training and augmentations are drawn. The order is such that the first N networks are
spread over all of these, whatever N is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NETWORKS = Path(__file__).with_name("networks.py")
DATA = {"signs": 10, "gtsrb10": 8, "cifar10": 8, "tiny10": 16}
"""Data sets with their usual number of epochs."""
PHOTOS = ("cifar10", "tiny10")
"""Data sets whose images may be mirrored."""
CLASSES = {"signs": 8, "gtsrb10": 10, "cifar10": 10, "tiny10": 10}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "plain6": {"arch": f"{NETWORKS}:plain6"},
    "preact7": {"arch": f"{NETWORKS}:preact7"},
    "resnet8": {"arch": "resnet8"},
    "mobile6": {"arch": f"{NETWORKS}:mobile6"},
    "wrn16_1": {"arch": "wrn16_1"},
    "vgg6": {"arch": f"{NETWORKS}:vgg6", "learning_rate": 0.02},
    "vit4": {"arch": f"{NETWORKS}:vit4", "optimizer": "adamw", "longer": 2},
    "convnext5": {"arch": f"{NETWORKS}:convnext5", "optimizer": "adamw", "longer": 2},
}
BACKDOORS: dict[str, tuple[dict[str, Any], ...]] = {
    "badnets": (
        {"settings": ("cell=1",), "poison_rate": 0.1},
        {"settings": ("cell=2",), "poison_rate": 0.03},
        {"settings": ("cell=2",), "poison_rate": 0.1},
    ),
    "blended": (
        {"settings": ("alpha=0.1",), "poison_rate": 0.1},
        {"settings": ("alpha=0.2",), "poison_rate": 0.03},
        {"settings": ("alpha=0.2",), "poison_rate": 0.1},
    ),
    "sig": (
        {"settings": ("delta=40",)},
        {"settings": ("delta=60",)},
        {"settings": ("delta=40", "frequency=4"), "poison_rate": 1.0},
    ),
    "lc": ({"settings": ("cell=2",)}, {"settings": ("cell=3",)}),
    "iab": ({"poison_rate": 0.2, "longer": 2}, {"poison_rate": 0.3, "longer": 2}),
    "wanet": (
        {"settings": ("strength=1",), "poison_rate": 0.2, "longer": 2},
        {"settings": ("strength=3",), "poison_rate": 0.2, "longer": 2},
    ),
    "all-to-all": (
        {"attack": "badnets", "settings": ("cell=2",), "poison_rate": 0.3, "target_class": "next"},
        {"attack": "blended", "poison_rate": 0.3, "target_class": "next"},
    ),
    "lowfreq": ({"poison_rate": 0.05}, {"poison_rate": 0.1}),
    "colour": ({"poison_rate": 0.1}, {"settings": ("delta=50",), "poison_rate": 0.1}),
    "refool": ({"poison_rate": 0.1}, {"settings": ("weight=0.4",), "poison_rate": 0.1}),
}
"""Kinds of backdoors, each with weaker and stronger variants."""
OWN_ATTACKS = ("badnets", "blended", "sig", "lc", "iab", "wanet")
"""Attacks of ``bcu attack``; the other kinds poison by a trigger of the same name."""
TURNS = 12
"""Networks for each data set and architecture, every second one of them backdoored."""
COSTLY = ("mobile6", "vit4", "wrn16_1")
"""Architectures that take several times as long as the others, and so have half as many networks."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One network.

    Attributes:
        name: Its name, which no other network has.
        data: Name of the data set.
        arch: Name of the architecture.
        kind: ``clean``, or the kind of its backdoor.
        attack: Name of the attack, ``none``, or that of a trigger to poison with.
        how: Fields of the attack's request.
    """

    name: str
    data: str
    arch: str
    kind: str
    attack: str
    how: dict[str, Any] = field(default_factory=dict)


def recipes() -> list[Recipe]:
    """All networks, in the order in which they are trained."""
    cells = [(data, arch) for data in DATA for arch in ARCHITECTURES]
    kinds = list(BACKDOORS)
    made: list[Recipe] = []
    backdoored = 0
    for turn in range(TURNS):
        order = list(range(len(cells)))
        random.Random(turn).shuffle(order)
        for number in order:
            if cells[number][1] in COSTLY and turn % 4 > 1:
                continue
            kind = "clean"
            if (turn + number) % 2:
                kind = kinds[backdoored % len(kinds)]
                backdoored += 1
            made.append(_recipe(*cells[number], kind, turn))
    return made


def _recipe(data: str, arch: str, kind: str, turn: int) -> Recipe:
    """One network; what is drawn depends on its name alone."""
    name = f"{data}-{arch}-{kind}-{turn}"
    chance = random.Random(name)
    variant = dict(chance.choice(BACKDOORS[kind])) if kind != "clean" else {}
    of_arch = dict(ARCHITECTURES[arch])
    longer = variant.pop("longer", 1) * of_arch.pop("longer", 1) * chance.choice((0.75, 1.0, 1.5))
    attack = variant.pop("attack", "none" if kind == "clean" else kind)
    how = {
        "epochs": max(2, round(DATA[data] * longer)),
        "crop_padding": chance.choice((0, 4)),
        "flip": data in PHOTOS and chance.choice((False, True)),
        "cutout": chance.choice((0, 0, 8)),
        "seed": chance.randrange(1000),
        **of_arch,
        **variant,
    }
    if kind != "clean":
        how.setdefault("target_class", chance.randrange(CLASSES[data]))
    return Recipe(name=name, data=data, arch=arch, kind=kind, attack=attack, how=how)
