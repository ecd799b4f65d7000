"""Are input size and normalisation found without options? Prints one JSON document.

    python examples/benchmarks/preprocessing.py DATA WORK > preprocessing.json

DATA holds the folders cifar10 and tiny-imagenet10 (train/CLASS/ and test/CLASS/) and tiny-imagenet/unlabeled;
the built-in signs are drawn into WORK. Small networks are trained there, with and without BatchNorm, for
several normalisations and sizes, and written without metadata; a stopped run goes on. Each file is opened as
``bcu cleanse FILE --images FOLDER`` opens it, with three folders: test images of its own data in the size of
its training, and images of another data set in that size and as they are. The other set is Tiny-ImageNet, or
CIFAR-10 for networks of Tiny-ImageNet. The verdicts:

- right: size and normalisation are the true ones or like them (sizes within a quarter, normalisations that
  ``nearly_equal`` does not tell apart)
- asked: an error that asks for ``--input-size`` or ``--mean`` and ``--std``
- wrong: other ones, without a question

Half of the networks (``calibration``) served to choose thresholds of bcu. The ``second`` half was looked at
as well while its rules were mended, so neither is held out.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import preprocessing_networks
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from bcu_cli.errors import BcuError
from bcu_cli.images.sources import signs
from bcu_cli.models import build
from bcu_cli.models.preprocessing import NORMALISATIONS, Normalisation, nearly_equal
from bcu_cli.workflows.loading import ModelOptions, load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

BY_NAME = {one.name: one for one in NORMALISATIONS}
LIKE = 1.25
EPOCHS, BATCH, ASKED_WITH = 8, 50, 300
CLASSES = {"cifar10": 10, "tiny-imagenet10": 10, "signs": 8}
#: Kind, form of its file, image set, side and normalisation of each network.
NETWORKS = (
    ("resnet8_w4", "weights", "cifar10", 32, "CIFAR-10"),
    ("resnet8_w4", "weights", "signs", 32, "0.5/0.5"),
    ("normed", "scripted", "cifar10", 32, "none"),
    ("normed", "traced", "signs", 28, "GTSRB"),
    ("patched", "code", "tiny-imagenet10", 96, "0.5/0.5"),
    ("normed", "onnx", "cifar10", 64, "ImageNet"),
    ("mobile", "scripted", "signs", 32, "none"),
    ("mobile", "code", "tiny-imagenet10", 64, "ImageNet"),
    ("mobile", "onnx", "cifar10", 28, "0.5/0.5"),
    ("patched", "scripted", "tiny-imagenet10", 128, "ImageNet"),
    ("plain", "scripted", "cifar10", 32, "ImageNet"),
    ("plain", "code", "signs", 32, "none"),
    ("plain", "onnx", "tiny-imagenet10", 64, "0.5/0.5"),
    ("flat", "scripted", "cifar10", 32, "0.5/0.5"),
    ("mobile_group", "code", "cifar10", 32, "none"),
    ("vit", "code", "cifar10", 32, "0.5/0.5"),
    ("vit", "traced", "signs", 32, "ImageNet"),
)


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of the networks: its kind, its file, and how it is trained."""

    kind: str
    form: str
    data: str
    side: int
    normalisation: Normalisation
    calibration: bool

    @property
    def name(self) -> str:
        """Name of its file without suffix."""
        return f"{self.kind}_{self.data}_{self.side}_{self.normalisation.name.replace('/', '-')}"

    @property
    def is_built_in(self) -> bool:
        """Whether bcu knows the architecture."""
        return not hasattr(preprocessing_networks, self.kind)

    def make(self, classes: int) -> nn.Module:
        """The network before its training."""
        if self.is_built_in:
            return build(self.kind, num_classes=classes)
        network: nn.Module = getattr(preprocessing_networks, self.kind)(classes)
        return network


def networks() -> list[Network]:
    """All networks; every second one belongs to the calibration half."""
    return [
        Network(
            kind=kind,
            form=form,
            data=data,
            side=side,
            normalisation=BY_NAME[normalisation],
            calibration=i % 2 == 0,
        )
        for i, (kind, form, data, side, normalisation) in enumerate(NETWORKS)
    ]


def read_images(files: Sequence[Path], side: int) -> Tensor:
    """Images ``uint8 [N, 3, side, side]``."""
    return torch.stack(
        [
            pil_to_tensor(Image.open(f).convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
            for f in files
        ]
    )


def classes_of(folder: Path) -> list[str]:
    """Names of the subfolders, sorted."""
    return sorted(one.name for one in folder.iterdir())


def files_of(folder: Path, at_most: int, names: Sequence[str] = ("",)) -> list[Path]:
    """A sample of the files in a folder, or in some of its subfolders, drawn with a fixed seed."""
    files = sorted(file for name in names for file in (folder / name).iterdir())
    return random.Random(0).sample(files, min(at_most, len(files)))


def moved(images: Tensor, *, flip: bool) -> Tensor:
    """Images shifted by up to an eighth of their side, and mirrored at random."""
    reach = images.shape[-1] // 8
    x, y = (int(torch.randint(-reach, reach + 1, ())) for _ in range(2))
    images = images.roll((x, y), (2, 3))
    return images.flip(3) if flip and torch.rand(()) < 0.5 else images


def train(network: Network, data: Path) -> tuple[nn.Module, float]:
    """The trained network, and its accuracy on 500 test images."""
    torch.manual_seed(0)
    names = classes_of(data / network.data / "train")
    parts = {"train": 3000 if network.side < 64 else 2000, "test": 500}
    sets = {}
    for part, number in parts.items():
        files = files_of(data / network.data / part, number, names)
        labels = torch.tensor([names.index(file.parent.name) for file in files])
        sets[part] = (read_images(files, network.side), labels)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (network.normalisation.mean, network.normalisation.std)
    )
    model = network.make(len(names))
    images, labels = sets["train"]
    epochs = EPOCHS * 2 if network.data == "signs" else EPOCHS
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for i in range(len(images) // BATCH):
            index = order[i * BATCH : (i + 1) * BATCH]
            inputs = (moved(images[index], flip=network.data != "signs").float() / 255 - mean) / std
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels[index]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    tests, wanted = sets["test"]
    with torch.no_grad():
        answers = torch.cat([model((part.float() / 255 - mean) / std) for part in tests.split(100)]).argmax(1)
    return model, float((answers == wanted).float().mean())


def draw_signs(work: Path) -> None:
    """Draw the built-in signs: 160 images of each class to train on, and 40 to test on."""
    for seed, (part, number) in enumerate((("train", 160), ("test", 40))):
        folder = work / "signs" / part
        if not folder.is_dir():
            folder.mkdir(parents=True)
            signs.write_folder(folder, number, seed=seed, labelled=True)


def write(model: nn.Module, network: Network, folder: Path) -> Path:
    """Write a network's file without metadata in its form; an ONNX file has BatchNorm folded in."""
    path = folder / f"{network.name}.{'onnx' if network.form == 'onnx' else 'pt'}"
    example = torch.rand(2, 3, network.side, network.side)
    if path.is_file():
        return path
    if network.form == "scripted":
        torch.jit.script(model).save(str(path))
    elif network.form == "traced":
        torch.jit.trace(model, example).save(str(path))
    elif network.form == "onnx":
        axes = {"x": dict(enumerate(("n", "c", "h", "w")))}
        del axes["x"][1]
        torch.onnx.export(model, (example,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    else:
        torch.save(model.state_dict(), path)
    return path


def image_folders(network: Network, data: Path, work: Path) -> list[Path]:
    """Folders of its own test images and of another set's, in the size of its training and as they are."""
    other, native = ("cifar10", 32) if network.data.startswith("tiny") else ("tiny-imagenet", 64)
    sets = dict.fromkeys([(network.data, network.side), (other, network.side), (other, native)])
    return [
        image_folder(name, side, work if name == "signs" else data, work / "images") for name, side in sets
    ]


def image_folder(name: str, side: int, data: Path, work: Path) -> Path:
    """A folder of images of a set in one size."""
    folder = work / f"{name}-{side}"
    if not folder.is_dir():
        unlabeled = data / name / "unlabeled"
        source = unlabeled if unlabeled.is_dir() else data / name / "test"
        names = [""] if source == unlabeled else classes_of(source)
        folder.mkdir(parents=True)
        for i, file in enumerate(files_of(source, ASKED_WITH, names)):
            image = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
            image.save(folder / f"{i}.png")
    return folder


def ask(network: Network, path: Path, folder: Path) -> dict[str, Any]:
    """What bcu decides for a file and a folder of images, and the verdict on it."""
    code = Path(preprocessing_networks.__file__)
    options = ModelOptions(arch=f"{code}:{network.kind}") if network.form == "code" else ModelOptions()
    try:
        loaded = load_model(path, options, pictures=folder)
    except BcuError as error:
        return {"verdict": "asked", "why": error.message, "hint": error.hint}
    found, true = loaded.preprocessing, network.normalisation
    side = found.input_size[1]
    normalisation = Normalisation(name="", mean=found.mean, std=found.std)
    right = max(side, network.side) <= LIKE * min(side, network.side) and nearly_equal(normalisation, true)
    decision = [line for line in loaded.evidence if line.startswith(("input size", "mean"))]
    figures = re.findall(r"(\S+) \((?:distance|consistency) (-?[\d.]+)\)", decision[-1])
    return {
        "verdict": "right" if right else "wrong",
        "decision": decision,
        "margin": {name: float(figure) for name, figure in figures[:2]},
    }


def cases_of(network: Network, data: Path, work: Path) -> list[dict[str, Any]]:
    """The cases of a network, which is trained first if it is not in the folder ``work`` yet."""
    weights, note = (work / f"{network.name}.{suffix}" for suffix in ("pt", "json"))
    if not note.is_file():
        begun = time.process_time()
        model, accuracy = train(network, work if network.data == "signs" else data)
        torch.save(model.state_dict(), weights)
        note.write_text(json.dumps({"accuracy": accuracy, "seconds": time.process_time() - begun}))
    model = network.make(CLASSES[network.data])
    model.load_state_dict(torch.load(weights, weights_only=True))
    path = write(model.eval(), network, work / "files")
    common = {
        "network": network.name,
        "form": network.form,
        "accuracy": round(json.loads(note.read_text())["accuracy"], 3),
        "half": "calibration" if network.calibration else "second",
    }
    return [
        {**common, "images": folder.name, "own": i == 0, **ask(network, path, folder)}
        for i, folder in enumerate(image_folders(network, data, work))
    ]


def count(cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Verdicts by half of the networks, and whether the images are test images of their own data."""
    return {
        f"{half}, {whose} images": collections.Counter(
            case["verdict"] for case in cases if (case["half"], case["own"]) == (half, whose == "own")
        )
        for half in ("calibration", "second")
        for whose in ("own", "other")
    }


def main() -> None:
    """Train what is missing, then open every file with every folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the image sets")
    parser.add_argument("work", type=Path, help="folder of the networks, where a stopped run goes on")
    parser.add_argument("--only", default="*", help="networks whose names fit this pattern")
    options = parser.parse_args()
    torch.set_num_threads(1)
    (options.work / "files").mkdir(parents=True, exist_ok=True)
    draw_signs(options.work)
    cases = []
    for network in networks():
        if not fnmatch(network.name, options.only):
            continue
        done = options.work / f"{network.name}.cases.json"
        if not done.is_file():
            done.write_text(json.dumps(cases_of(network, options.data, options.work)))
        cases += json.loads(done.read_text())
        print(f"{network.name}: {[case['verdict'] for case in cases[-3:]]}", file=sys.stderr, flush=True)
    print(json.dumps({"cases": len(cases), "counts": count(cases), "all": cases}, indent=1))


if __name__ == "__main__":
    main()
