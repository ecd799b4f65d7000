"""What defenses are tested in: a backdoored network and drawn road signs, or a tiny network and noise."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Resampling
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bcu_cli.checkpoints import read
from bcu_cli.defenses.base import find
from bcu_cli.evaluation.measures import accuracy, attack_success
from bcu_cli.images.folder import ImageSet
from bcu_cli.images.sources import signs
from bcu_cli.models import Classifier, Preprocessing, load
from bcu_cli.models.architectures.dispatch import DispatchMode
from bcu_cli.training.devices import Device
from bcu_cli.triggers.base import load as load_trigger

if TYPE_CHECKING:
    from bcu_cli.defenses.base import Defense
    from bcu_cli.triggers.base import Trigger

DATA = Path(__file__).parent / "data"
CPU = Device(torch=torch.device("cpu"), precision="fp32")
META = Device(torch=torch.device("meta"), precision="fp32")
TRANSFERS = ("aten::_to_copy", "aten::copy_")


class OneDevice(DispatchMode):
    """Refuses operations on tensors of the device together with others, but for numbers and transfers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor) and each.dim()]
        if func._schema.name not in TRANSFERS and len({each.device for each in tensors}) > 1:
            raise AssertionError(f"{func} takes tensors of {[str(each.device) for each in tensors]}")
        return func(*args, **(kwargs or {}))


def drawn(per_class: int, seed: int, side: int = signs.SIDE) -> ImageSet:
    """Road signs, labelled, ``side`` pixels wide."""
    chance = random.Random(seed)
    names = sorted(signs.CLASSES)
    pictures = [signs.draw(name, chance) for name in names for _ in range(per_class)]
    sized = [picture.resize((side, side), Resampling.BILINEAR) for picture in pictures]
    pixels = [torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in sized]
    images = torch.stack([each.view(side, side, 3).permute(2, 0, 1) for each in pixels]).contiguous()
    labels = torch.arange(len(names)).repeat_interleave(per_class)
    return ImageSet(images=images, labels=labels, classes=tuple(names))


@dataclass(frozen=True)
class Setting:
    """A network that answers class 0 to a trigger, images to cleanse it with, and others to measure it on."""

    model: Classifier
    trigger: Trigger
    data: ImageSet
    test: ImageSet

    def defense(self, name: str, **options: Any) -> Defense[Any]:
        """A defense of this network, whose stages are to be run."""
        kind = find(name)
        model, held_out = copy.deepcopy(self.model), drawn(4, seed=4)
        return kind(model, self.data, kind.Options(**options), device=CPU, held_out=held_out)

    def measure(self, model: Classifier) -> tuple[float, float]:
        """ACC and ASR."""
        success = attack_success(model, self.test, self.trigger, 0, CPU)
        return accuracy(model, self.test, CPU).value, success.asr.value


def run(defense: Defense[Any]) -> list[list[float]]:
    """Run a defense to its end; returns the losses of each stage's epochs."""
    losses: list[list[float]] = []
    for stage in defense.stages():
        losses.append([])
        stage.training.run(on_epoch=lambda epoch: losses[-1].append(epoch.loss))
    return losses


def backdoored_setting(name: str = "backdoored") -> Setting:
    """A network of tests/data, which answers class 0 to its trigger."""
    model = load(read(DATA / f"{name}.safetensors")).classifier.eval()
    shape = model.preprocessing.input_size
    trigger = load_trigger(DATA / f"{name}.trigger.safetensors", shape).trigger
    return Setting(model, trigger, drawn(20, seed=3, side=shape[1]), drawn(16, seed=2, side=shape[1]))


QUICK = {
    "epochs": 2,
    "batch_size": 32,
    "crop_padding": 1,
    "steps": 4,
    "teacher_epochs": 1,
    "end_epochs": 1,
    "inner_steps": 2,
    "fixed_point_steps": 2,
    "u": 0.5,
    "threshold": 0.9999,
}
"""What makes any of them quick; each takes what it has."""


def classifier(network: nn.Module, side: int = 8, classes: int = 4) -> Classifier:
    as_they_are = Preprocessing(input_size=(3, side, side), mean=(0.5,) * 3, std=(0.25,) * 3)
    return Classifier(network, as_they_are, classes).eval()


def small(*, norms: bool = True) -> Classifier:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        *([nn.BatchNorm2d(8)] if norms else []),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        *([nn.BatchNorm2d(8)] if norms else []),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 4),
    ]
    return classifier(nn.Sequential(*layers))


def pictures(side: int = 8, count: int = 64, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return ImageSet(images=images, labels=torch.arange(count) % 4, classes=("a", "b", "c", "d"))


def quick(name: str, **more: Any) -> Any:
    kind = find(name)
    known = {field.name for field in fields(kind.Options)}
    return kind.Options(**{key: value for key, value in QUICK.items() if key in known} | more)


def defense(name: str, model: Classifier | None = None, **more: Any) -> Defense[Any]:
    model = model or small()
    side = model.preprocessing.input_size[1]
    data, held_out = pictures(side), pictures(side, count=16, seed=1)
    return find(name)(model, data, quick(name, **more), device=CPU, held_out=held_out)
