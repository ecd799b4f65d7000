"""How fast is it? Prints one JSON document with every figure of speed that this machine allows.

    python examples/benchmarks/speed.py MODEL --trigger FILE --images FOLDER --data FOLDER [--quick]
    python examples/benchmarks/speed.py --only profile --only start_up

MODEL is a backdoored network and FILE its trigger, both of ``bcu attack``. The first folder holds unlabeled
images, the second labelled ones to measure ACC and ASR on. Only ``published`` needs them. The figures:

- published: ``bcu cleanse --method bcu`` beside the procedure as the authors published it
  (``published_procedure.py``), with the same network, images, epochs and device. Each is timed from the
  start of its process to its end. They take turns, so that a busy machine slows both;
- profile: the time of each part, and the share of the device's peak. The networks are a ResNet-18 on 32x32
  and a ResNet-50 on 224x224, with random weights and drawn images, of sizes that suit the device;
- start_up: seconds of commands that do little, the median of several, beside an interpreter that does
  nothing, and until the first step of a training;
- large_folder: a million files, until the first step and how many are decoded a second (``large_folder.py``);
- scaling: several processes beside one, and the estimate for more (``scaling.py``).

--quick runs all of it in a size that shows that it runs, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.checkpoints import Format, write
from bcu_cli.images.sources import signs
from bcu_cli.models import Architecture, metadata_for
from bcu_cli.models.new_classifier import new_classifier
from bcu_cli.report.document import environment
from bcu_cli.training import devices

if TYPE_CHECKING:
    from collections.abc import Callable

BCU = (sys.executable, "-m", "bcu_cli")
PUBLISHED, LARGE_FOLDER, SCALING = (
    (sys.executable, str(Path(__file__).with_name(f"{name}.py")))
    for name in ("published_procedure", "large_folder", "scaling")
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the figures are measured with: the command line's options, and a folder for files."""

    model: Path | None
    trigger: Path | None
    images: Path | None
    data: Path | None
    epochs: int
    repeats: int
    quick: bool
    device: devices.Device
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Whether it is one."""
        return self.device.torch.type != "cpu"


@dataclass(frozen=True, kw_only=True)
class Size:
    """A training to profile."""

    arch: str
    side: int
    images: int
    epochs: int
    batch_size: int


CPU_SIZES = {
    "resnet18-32x32": Size(arch="resnet18_cifar", side=32, images=2500, epochs=2, batch_size=256),
    "resnet50-224x224": Size(arch="torchvision:resnet50", side=224, images=96, epochs=1, batch_size=16),
}
GPU_SIZES = {
    "resnet18-32x32": Size(arch="resnet18_cifar", side=32, images=2500, epochs=100, batch_size=256),
    "resnet50-224x224": Size(arch="torchvision:resnet50", side=224, images=5000, epochs=20, batch_size=128),
}
QUICK_SIZES = {
    "resnet18-32x32": Size(arch="resnet8", side=32, images=96, epochs=1, batch_size=32),
    "resnet50-224x224": Size(arch="resnet8", side=64, images=64, epochs=1, batch_size=16),
}


def run(command: tuple[str, ...]) -> tuple[float, Any]:
    """Seconds from the start to the end of a process, and the JSON that it printed, where it printed any.

    Raises:
        RuntimeError: It failed.
    """
    talk(shlex.join(command))
    started = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    seconds = time.perf_counter() - started
    if ran.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {ran.stderr.strip()}")
    return seconds, json.loads(ran.stdout) if ran.stdout.startswith("{") else None


def cleanse(setting: Setting, model: Path, images: Path, out: Path, *more: object) -> tuple[float, Any]:
    """Run ``bcu cleanse`` by the paper's method."""
    words = ("--images", images, "--out", out, "--method", "bcu", "--json", *more)
    on = ("--device", setting.device.torch, "--precision", setting.device.precision)
    return run((*BCU, "cleanse", *map(str, (model, *words, *on))))


def against_published(setting: Setting) -> dict[str, Any]:
    """Cleansing beside the authors' procedure, by turns; ACC and ASR of both results."""
    theirs, ours = setting.folder / "published.safetensors", setting.folder / "bcu.safetensors"
    model, images = setting.model, setting.images
    if model is None or images is None:
        raise ValueError("the comparison needs a network and images")
    given = ("--images", setting.images, "--data", setting.data, "--trigger", setting.trigger)
    on = ("--out", theirs, "--epochs", setting.epochs, "--device", setting.device.torch)
    rounds = []
    for _ in range(setting.repeats):
        slow, details = run((*PUBLISHED, *map(str, (setting.model, *given, *on))))
        fast, report = cleanse(setting, model, images, ours, "--epochs", setting.epochs, "--no-flip")
        measuring = details["seconds_evaluating"]
        rounds.append(
            {
                "published_seconds": slow,
                "published_seconds_evaluating": measuring,
                "bcu_seconds": fast,
                "ratio": slow / fast,
                "ratio_without_their_evaluation": (slow - measuring) / fast,
                "bcu_training": report["training"],
            }
        )
    files = (setting.model, theirs, ours)
    measured = ("--data", setting.data, "--trigger", setting.trigger, "--json")
    _, evaluated = run((*BCU, "evaluate", *map(str, (*files, *measured))))
    quality = {
        name: {key: model[key] for key in ("acc", "asr")}
        for name, model in zip(("original", "published", "bcu"), evaluated["models"], strict=True)
    }
    return {
        "epochs": setting.epochs,
        "images": report["images"]["used"],
        "architecture": report["model"]["architecture"]["name"],
        "rounds": rounds,
        "median_ratio": statistics.median(each["ratio"] for each in rounds),
        "quality": quality,
    }


def profile(setting: Setting) -> dict[str, Any]:
    """The split and the share of the peak of two networks."""
    sizes = QUICK_SIZES if setting.quick else GPU_SIZES if setting.on_gpu else CPU_SIZES
    found = {}
    for name, size in sizes.items():
        model, images = drawn(setting.folder / name, size)
        words = ("--epochs", size.epochs, "--batch-size", size.batch_size, "--profile", "--seed", 0)
        _, report = cleanse(setting, model, images, setting.folder / f"{name}.out.safetensors", *words)
        found[name] = {
            "size": vars(size),
            **{key: report[key] for key in ("profile", "training", "peak_memory")},
        }
    return found


def start_up(setting: Setting) -> dict[str, Any]:
    """Medians of commands that do little, and of what comes before a training's first step."""
    size = Size(arch="resnet18_cifar", side=32, images=64, epochs=1, batch_size=32)
    model, images = drawn(setting.folder / "start", size)
    commands = {
        "python -c pass": (sys.executable, "-c", "pass"),
        "bcu --help": (*BCU, "--help"),
        "bcu inspect FILE": (*BCU, "inspect", str(model), "--json"),
    }
    found: dict[str, Any] = {
        name: timed(partial(seconds_of, command), setting) for name, command in commands.items()
    }
    found["a usage error"] = timed(usage_error, setting)
    out = setting.folder / "start.out.safetensors"

    def first_step() -> float:
        report = cleanse(setting, model, images, out, "--epochs", 1, "--batch-size", 32, "--profile")[1]
        return float(report["profile"]["seconds_to_first_step"])

    found["bcu cleanse to its first step"] = timed(first_step, setting)
    return found


def large_folder(setting: Setting) -> dict[str, Any]:
    """What ``large_folder.py`` prints."""
    words = ("--files", 5000, "--photos", 20, "--steps", 2, "--seconds", 1.0) if setting.quick else ()
    on = ("--device", setting.device.torch)
    found: dict[str, Any] = run((*LARGE_FOLDER, *map(str, (setting.folder / "large", *words, *on))))[1]
    return found


def scaling(setting: Setting) -> dict[str, Any]:
    """What ``scaling.py`` prints: of the GPUs if there are several, else of two processes on the CPU."""
    several = setting.on_gpu and torch.cuda.device_count() > 1
    words: tuple[object, ...] = ()
    if setting.quick:
        words = ("--arch", "resnet8", "--epochs", 1, "--rounds", 1)
    elif several:
        words = ("--arch", "resnet18_cifar", "--epochs", 100, "--batch-size", 256)
    on = ("--device", "cuda" if several else "cpu")
    found: dict[str, Any] = run((*SCALING, *map(str, words), *on))[1]
    return found


FIGURES: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "published": against_published,
    "profile": profile,
    "start_up": start_up,
    "large_folder": large_folder,
    "scaling": scaling,
}
"""Whoever measures something else adds a function here."""


def usage_error() -> float:
    """Seconds of a command line that is refused."""
    started = time.perf_counter()
    code = subprocess.run((*BCU, "cleanse", "--nonsense"), capture_output=True, check=False).returncode  # noqa: S603
    if code != 2:
        raise RuntimeError(f"a usage error ended with {code}")
    return time.perf_counter() - started


def seconds_of(command: tuple[str, ...]) -> float:
    """Seconds from the start to the end of a process."""
    return run(command)[0]


def timed(work: Callable[[], float], setting: Setting) -> dict[str, Any]:
    """Median and each of several times, in seconds; a first time that warms the disk does not count.

    Beside it the median of the processors' time of the whole command, which a busy machine changes less.
    """
    work()
    seconds, processor = [], []
    for _ in range(2 if setting.quick else 7):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(work())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {
        "median": statistics.median(seconds),
        "least": min(seconds),
        "seconds": seconds,
        "median_processor_seconds": statistics.median(processor),
    }


def drawn(folder: Path, size: Size) -> tuple[Path, Path]:
    """A file of random weights, and a folder of drawn images."""
    images = folder / "pictures"
    signs.write_folder(images, -(-size.images // len(signs.CLASSES)), seed=0, labelled=False)
    for surplus in sorted(images.iterdir())[size.images :]:
        surplus.unlink()
    pixels = torch.randint(0, 256, (8, 3, size.side, size.side), dtype=torch.uint8)
    model = new_classifier(size.arch, len(signs.CLASSES), pixels, seed=0)
    known = Architecture(name=size.arch, source="benchmark", num_classes=len(signs.CLASSES))
    path = folder / "model.safetensors"
    metadata = metadata_for(known, model.preprocessing, list(signs.CLASSES))
    write(path, model.network.state_dict(), format=Format.SAFETENSORS, metadata=metadata)
    return path, images


def talk(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", help="a backdoored network of bcu attack")
    parser.add_argument("--trigger", type=Path, help="its trigger file")
    parser.add_argument("--images", type=Path, help="folder of unlabeled images")
    parser.add_argument("--data", type=Path, help="labelled images, a subfolder a class")
    parser.add_argument("--epochs", type=int, default=100, help="of the comparison")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the comparison")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=FIGURES, action="append", help="this figure; repeatable")
    parser.add_argument("--quick", action="store_true", help="a size that shows that it runs")
    given = parser.parse_args()
    wanted = given.only or list(FIGURES)
    if "published" in wanted and None in (given.model, given.trigger, given.images, given.data):
        parser.error("the figure published needs MODEL, --trigger, --images and --data; --only names others")
    device = devices.choose(given.device)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            model=given.model,
            trigger=given.trigger,
            images=given.images,
            data=given.data,
            epochs=1 if given.quick else given.epochs,
            repeats=1 if given.quick else given.repeats,
            quick=given.quick,
            device=device,
            folder=Path(folder),
        )
        load_before = os.getloadavg()
        figures = {name: FIGURES[name](setting) for name in wanted}
    document = {
        "command": shlex.join(["python", *sys.argv]),
        **environment(device),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "load": {"before": load_before, "after": os.getloadavg()},
        "quick": given.quick,
        "figures": figures,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
