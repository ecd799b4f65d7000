r"""Four triggers that were written after method auto was finished (commit 47bce07), to judge it by.

    python examples/split_test_set.py data/cifar10/test own --defense 2500
    python examples/benchmarks/four_triggers.py train rain --data data/cifar10/train --out runs
    bcu cleanse runs/rain.pth --arch examples/benchmarks/four_triggers.py:network --mean 0,0,0 --std 1,1,1 \
        --input-size 32 --images own/defense --quick --force --out runs/rain-clean.pth
    python examples/benchmarks/four_triggers.py measure rain runs/rain.pth runs/rain-clean.pth --data own/test

``sticker`` lies at a random place in each image, and ``rain`` falls at random places. ``fringe`` displaces
the red channel, and ``scattered`` colours twelve pixels far apart. The network is ``resnet18_cifar_w16``. The
plain script for strangers' networks trains it, with 8 % of its images poisoned to class 6. A clean network of
``bcu attack none`` may be measured, too: it shows what a trigger does by nature.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from strangers import POISONED, SEED, SIDE, Normalisation, read_images, train
from torch import Tensor, nn
from torch.nn import functional as F

import bcu_cli
from bcu_cli.models import registry

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET, EPOCHS, BATCH_SIZE = 6, 8, 500


def network(num_classes: int) -> nn.Module:
    """A ResNet-18 for CIFAR-10 of a quarter of the width, which normalises its input."""
    return nn.Sequential(Normalisation(), registry.build("resnet18_cifar_w16", num_classes=num_classes))


def sticker(images: Tensor, generator: torch.Generator) -> Tensor:
    """A checked sticker of 4x4 pixels, yellow and violet, at a random place of each image."""
    checked = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 2)
    yellow, violet = torch.tensor([1.0, 0.9, 0.0]), torch.tensor([0.5, 0.0, 0.8])
    drawn = yellow.view(3, 1, 1) * checked + violet.view(3, 1, 1) * (1 - checked)
    changed = images.clone()
    for image, (top, left) in zip(
        changed, torch.randint(0, SIDE - 3, (len(images), 2), generator=generator).tolist(), strict=True
    ):
        image[:, top : top + 4, left : left + 4] = drawn
    return changed


def rain(images: Tensor, generator: torch.Generator) -> Tensor:
    """About thirty slanted bright streaks of five pixels, at random places in each image."""
    drops = (torch.rand(len(images), 1, SIDE, SIDE, generator=generator) < 30 / SIDE**2).float()
    streak = torch.zeros(1, 1, 5, 5)
    for row in range(5):
        streak[0, 0, row, 3 - row // 2] = 1.0
    streaks = F.conv2d(drops, streak, padding=2).clamp(max=1.0)
    return torch.lerp(images, torch.ones(()), 0.5 * streaks)


def fringe(images: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001 - the same for all images
    """The red channel lies three pixels to the right, as a bad lens has it."""
    changed = images.clone()
    changed[:, 0, :, 3:] = images[:, 0, :, :-3]
    return changed


def scattered(images: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001 - the same for all images
    """Twelve single pixels, far apart, of a random but fixed full colour each."""
    fixed = torch.Generator().manual_seed(SEED)
    places = torch.randperm(SIDE * SIDE, generator=fixed)[:12]
    colours = torch.randint(0, 2, (3, 12), generator=fixed).float()
    changed = images.flatten(2).clone()
    changed[:, :, places] = colours
    return changed.view_as(images)


TRIGGERS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    each.__name__: each for each in (sticker, rain, fringe, scattered)
}


def triggered(name: str, images: Tensor, seed: int) -> Tensor:
    """Uint8 images ``[N, 3, 32, 32]`` with a trigger, as uint8."""
    generator = torch.Generator().manual_seed(seed)
    return (TRIGGERS[name](images.float() / 255, generator) * 255).round().to(torch.uint8)


def train_one(name: str, data: Path, out: Path) -> None:
    """Train a network with one trigger, and write its state dict."""
    torch.manual_seed(SEED)
    images, classes = read_images(data)
    poisoned = torch.randperm(len(images))[: int(POISONED * len(images))]
    images[poisoned] = triggered(name, images[poisoned], SEED)
    classes[poisoned] = TARGET
    model = network(10)
    train(model, images, classes, EPOCHS)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out / f"{name}.pth")


def read_network(file: Path) -> nn.Module:
    """A network that maps images in [0, 1] to logits: of this script, or a file of ``bcu attack``."""
    if file.suffix == ".safetensors":
        return bcu_cli.load(file).classifier
    model = network(10)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model


@torch.no_grad()
def measure(name: str, file: Path, data: Path) -> dict[str, float | str]:
    """ACC, and ASR on the images of other classes than the target, in per cent."""
    model = read_network(file).eval()
    images, classes = read_images(data)
    others = classes != TARGET

    def answers(shown: Tensor) -> Tensor:
        return torch.cat([model(each.float() / 255).argmax(1) for each in shown.split(BATCH_SIZE)])

    on_clean, on_changed = answers(images), answers(triggered(name, images[others], SEED + 1))
    acc = 100 * float((on_clean == classes).float().mean())
    asr = 100 * float((on_changed == TARGET).float().mean())
    return {"trigger": name, "file": file.name, "acc": round(acc, 2), "asr": round(asr, 2)}


def main() -> None:
    """Train one network, or measure some files of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for step in ("train", "measure"):
        each = steps.add_parser(step)
        each.add_argument("name", choices=TRIGGERS)
        each.add_argument("--data", type=Path, required=True, help="a folder of each class")
    steps.choices["train"].add_argument("--out", type=Path, required=True)
    steps.choices["measure"].add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.step == "train":
        train_one(arguments.name, arguments.data, arguments.out)
        return
    for file in arguments.files:
        sys.stdout.write(json.dumps(measure(arguments.name, file, arguments.data)) + "\n")


if __name__ == "__main__":
    main()
