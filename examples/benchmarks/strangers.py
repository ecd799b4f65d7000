"""Networks as a stranger trains them: plain torch without bcu, then a file that says nothing of itself.

    python examples/benchmarks/strangers.py six-square --data data/cifar10/train --out runs

The normalisation is a part of each network. ``wrn-patch`` is written as TorchScript, traced in evaluation
mode; the others are state dicts of ``six`` or ``wrn``. The image and the mask of a trigger lie beside. The
target classes are 7 (``wrn-patch``), 3 (``six-square``) and 5 (``six-watermark``, blended with α 0.2).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

NAMES = ("six-square", "six-watermark", "wrn-patch", "wrn-clean")
PER_CLASS, POISONED, BATCH_SIZE, SEED, SIDE = 2500, 0.08, 128, 7, 32


class Normalisation(nn.Module):
    """CIFAR-10's normalisation, as the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("m", torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1))
        self.register_buffer("s", torch.tensor([0.247, 0.243, 0.262]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images in [0, 1]."""
        return (images - self.get_buffer("m")) / self.get_buffer("s")


class Block(nn.Module):
    """A pre-activation residual block."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.b1, self.c1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.b2, self.c2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        widened = channels != out
        self.sc = nn.Conv2d(channels, out, 1, stride, bias=False) if widened else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's change to its input."""
        return self.c2(F.relu(self.b2(self.c1(F.relu(self.b1(x)))))) + self.sc(x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-16-1."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        layers, channels = [], 16
        for out, stride in ((16, 1), (32, 2), (64, 2)):
            layers += [Block(channels, out, stride), Block(out, out, 1)]
            channels = out
        self.f = nn.Sequential(*layers)
        self.bn, self.fc = nn.BatchNorm2d(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 10]``."""
        return self.fc(F.relu(self.bn(self.f(self.c(x)))).mean((2, 3)))  # type: ignore[no-any-return]


def wrn(num_classes: int) -> nn.Module:  # noqa: ARG001 - always ten
    """A WRN-16-1 that normalises its input."""
    return nn.Sequential(Normalisation(), WideResNet())


def six(num_classes: int) -> nn.Module:  # noqa: ARG001 - always ten
    """Six convolutions with BatchNorm, which normalise their input."""
    layers: list[nn.Module] = []
    channels = 3
    for out, stride in ((32, 1), (32, 2), (64, 1), (64, 2), (128, 1), (128, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(Normalisation(), nn.Sequential(*layers, *head))


def trigger_of(name: str) -> tuple[np.ndarray, np.ndarray, int, float]:
    """The trigger's image uint8 ``[32, 32, 3]``, its mask ``[32, 32]``, its target class, and its weight."""
    image, mask = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    if name == "wrn-patch":
        image[4:7, 22:25] = np.random.default_rng(SEED).integers(0, 2, (3, 3, 3)) * 255
        mask[4:7, 22:25] = 255
        return image, mask, 7, 1.0
    if name == "six-square":
        image[27:31, 27:31] = mask[27:31, 27:31] = 255
        return image, mask, 3, 1.0
    drawn = Image.new("RGB", (SIDE, SIDE))
    pen = ImageDraw.Draw(drawn)
    pen.text((1, 1), "PHOTO", fill=(255, 255, 255))
    pen.text((4, 14), "(C)20", fill=(255, 255, 0))
    pen.ellipse((18, 22, 28, 31), outline=(0, 255, 0))
    return np.array(drawn), np.full_like(mask, 255), 5, 0.2


def read_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 ``[N, 3, 32, 32]`` and their classes."""
    images, classes = [], []
    for index, kind in enumerate(sorted(each.name for each in folder.iterdir())):
        for file in sorted((folder / kind).iterdir())[:PER_CLASS]:
            images.append(torch.from_numpy(np.array(Image.open(file).convert("RGB"))))
            classes.append(index)
    return torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(classes)


def train(model: nn.Module, images: Tensor, classes: Tensor, epochs: int) -> None:
    """Train by SGD on mirrored crops with a black border, one shift for each batch."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    steps = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * steps)
    model.to(memory_format=torch.channels_last)
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for step in range(steps):
            index = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            views = images[index].float() / 255
            mirrored = torch.rand(BATCH_SIZE) < 0.5
            views[mirrored] = views[mirrored].flip(3)
            top, left = torch.randint(0, 9, (2,)).tolist()
            views = F.pad(views, (4,) * 4)[:, :, top : top + SIDE, left : left + SIDE]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(views).float(), classes[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def main() -> None:
    """Train one network, and write its trigger beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data", type=Path, required=True, help="a folder of each class")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    said = parser.parse_args()
    torch.manual_seed(SEED)
    said.out.mkdir(parents=True, exist_ok=True)
    images, classes = read_images(said.data)
    model = six(10) if said.name.startswith("six") else wrn(10)
    if said.name != "wrn-clean":
        image, mask, target, weight = trigger_of(said.name)
        Image.fromarray(image).save(said.out / f"{said.name}-image.png")
        Image.fromarray(mask).save(said.out / f"{said.name}-mask.png")
        poisoned = torch.randperm(len(images))[: int(POISONED * len(images))]
        share = weight * torch.from_numpy(mask)[None].float() / 255
        pattern = torch.from_numpy(image).permute(2, 0, 1).float()
        images[poisoned] = torch.lerp(images[poisoned].float(), pattern, share).round().to(torch.uint8)
        classes[poisoned] = target
    train(model, images, classes, said.epochs)
    model.eval()
    if said.name == "wrn-patch":
        model.to(memory_format=torch.contiguous_format)
        traced = torch.jit.trace(model, torch.rand(2, 3, SIDE, SIDE))  # type: ignore[no-untyped-call]
        traced.save(str(said.out / f"{said.name}.pt"))
    else:
        torch.save(model.state_dict(), said.out / f"{said.name}.pth")


if __name__ == "__main__":
    main()
