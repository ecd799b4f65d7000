"""The cleansing of Pang et al. 2023 as their paper tells it, to be timed beside ``bcu cleanse``.

    python examples/benchmarks/published_procedure.py MODEL --images DIR [--data DIR --trigger FILE] --out OUT

Written from the paper alone (section 3, Algorithm 1, section 4.1), in the manner of such code. It trains in
fp32 by SGD, with one forward pass of the teacher and of the student for each batch. The worker processes of a
DataLoader open, resize and augment each image again in each epoch. With ``--data`` and ``--trigger`` ACC and
ASR are measured after each epoch. The rest is bcu's: reading and writing the file, which weights are
re-initialised, and which images are held out. So both begin at the same student and see the same images.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from bcu_cli.checkpoints import Format, read
from bcu_cli.defenses.bcu import BcuOptions, reinitialise
from bcu_cli.images.folder import ImageSet, hold_out
from bcu_cli.images.sources.listing import list_files
from bcu_cli.models import load
from bcu_cli.models.export import write_like
from bcu_cli.triggers.base import Implanted
from bcu_cli.triggers.base import load as load_trigger

if TYPE_CHECKING:
    from collections.abc import Callable


class ImageLinks(Dataset[Tensor]):
    """Image files without labels, opened each time that they are asked for."""

    def __init__(self, files: list[Path], transform: Any) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        with Image.open(self.files[i]) as picture:
            view: Tensor = self.transform(picture.convert("RGB"))
        return view


def used_of(files: list[Path], seed: int) -> list[Path]:
    """Those that ``bcu cleanse`` trains on: a tenth is held out."""
    every = ImageSet(images=torch.arange(len(files)).view(-1, 1, 1, 1))
    used, _ = hold_out(every, 0.1, most=1000, generator=torch.Generator().manual_seed(seed))
    return [files[i] for i in used.images.flatten().tolist()]


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: DataLoader[Any], implanted: Implanted, device: torch.device
) -> tuple[float, float]:
    """ACC, and ASR over the images that are not of the target class."""
    model.eval()
    right = tricked = count = others = 0
    target = implanted.target_class
    if not isinstance(target, int):
        raise SystemExit("the trigger leads to no one class")
    for batch, answers in batches:
        images, labels = batch.to(device), answers.to(device)
        right += int((model(images).argmax(1) == labels).sum())
        count += len(labels)
        away = labels != target
        tricked += int((model(implanted.trigger.apply(images[away])).argmax(1) == target).sum())
        others += int(away.sum())
    return right / count, tricked / max(1, others)


def main() -> None:
    """Cleanse, and print the seconds and the last epoch's ACC and ASR as JSON."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of unlabeled images")
    parser.add_argument("--data", type=Path, help="labelled images, a subfolder a class")
    parser.add_argument("--trigger", type=Path, help="trigger file of bcu attack")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--flip", action="store_true", help="a mirrored image is of its class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if (options.data is None) != (options.trigger is None):
        parser.error("--data and --trigger belong together")
    device = torch.device(options.device)
    loaded = load(read(options.model))
    teacher = loaded.classifier.eval()
    channels, height, width = teacher.preprocessing.input_size
    student = copy.deepcopy(teacher)
    reinitialise(student.network, torch.zeros(2, channels, height, width), BcuOptions(seed=options.seed))
    teacher.to(device)
    student.to(device)

    whole = [transforms.Resize((height, width))]
    views = [transforms.RandomCrop((height, width), padding=height // 8)]
    mirror = [transforms.RandomHorizontalFlip()] if options.flip else []
    files, _ = list_files(options.images)
    train = ImageLinks(
        used_of(files, options.seed),
        transforms.Compose([*whole, *views, *mirror, transforms.ToTensor()]),
    )
    workers = {"num_workers": options.workers, "pin_memory": device.type == "cuda"}
    train_batches = DataLoader(train, options.batch_size, shuffle=True, **workers)
    measure: Callable[[], tuple[float, float]] | None = None
    if options.data is not None:
        test = ImageFolder(str(options.data), transforms.Compose([*whole, transforms.ToTensor()]))
        implanted = load_trigger(options.trigger, teacher.preprocessing.input_size)
        measure = partial(
            evaluate, student, DataLoader(test, options.batch_size, **workers), implanted, device
        )

    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    evaluating, acc, asr = 0.0, 0.0, 0.0
    torch.manual_seed(options.seed)
    for epoch in range(options.epochs):
        student.train()
        for group in optimizer.param_groups:
            group["lr"] = 0.005 * (1.0 + cos(pi * epoch / options.epochs))
        temperature = 1.0 + 3.0 * epoch / max(1, options.epochs - 1)
        for batch in train_batches:
            images = batch.to(device)
            with torch.no_grad():
                targets = F.softmax(teacher(images) / temperature, dim=1)
            answers = F.log_softmax(student(images) / temperature, dim=1)
            loss = F.kl_div(answers, targets, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # for the line that such code prints
        before = time.perf_counter()
        if measure is not None:
            acc, asr = measure()
        evaluating += time.perf_counter() - before
    write_like(loaded, student, options.out, Format.SAFETENSORS)
    seconds = time.perf_counter() - started
    measured = {} if measure is None else {"acc": acc, "asr": asr}
    print(json.dumps({"seconds_in_main": seconds, "seconds_evaluating": evaluating} | measured))


if __name__ == "__main__":
    main()
