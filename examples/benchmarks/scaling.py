"""How much faster several processes cleanse than one, measured here; and what links would allow, on paper.

    python examples/benchmarks/scaling.py [--devices 2] [--rounds 3] [--arch resnet14] > scaling.json
    python examples/benchmarks/scaling.py --estimate > estimate.json

Measures whole `bcu cleanse --method bcu` runs on drawn road signs, of a network with random weights, at the
same global batch. One process and several take turns, so that what else runs on the machine slows all. On a
CPU there is a third: one process with the threads of all. What is compared is the speed of the training, as
the reports have it; the start-up, which several processes do not shorten, stands beside it.

The estimate is of the formula in docs/devices.md. It is on paper, and stands in the document either
way. ``speed.py`` runs this, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

PHOTOS = 160
"""Images of each of the 8 signs."""
PASSES_OVER_GRADIENTS = 2.0
"""Rounds of a ring all-reduce: each byte goes around once to be summed and once to be distributed."""
BACKWARD = 0.5
"""Share of a step's computing in which gradients come out: the student's forward pass takes a quarter, its
backward pass a half, the teacher's forward pass a quarter."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A training step on one device.

    Args:
        name: Name of the training.
        gradients: Size of the fp32 gradients, in bytes.
        seconds: Time of a step with the whole batch on one device.
    """

    name: str
    gradients: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link between two devices.

    Args:
        name: Name of the link.
        bytes_per_second: Bandwidth in one direction.
        latency: Latency of one message, in seconds.
    """

    name: str
    bytes_per_second: float
    latency: float


STEPS = (
    Work(name="ResNet-18, 32x32, batch 256, 12 ms", gradients=4 * 11.17e6, seconds=0.012),
    Work(name="ResNet-50, 224x224, batch 256, 30 ms", gradients=4 * 25.56e6, seconds=0.030),
)
"""Step times of one H100 at bcu's targets (12 s for 1,000 steps; 40 % of 700 TFLOP/s); not measured."""
LINKS = (
    Link(name="NVLink, 450 GB/s", bytes_per_second=450e9, latency=5e-6),
    Link(name="PCIe 4, 25 GB/s", bytes_per_second=25e9, latency=10e-6),
    Link(name="100 Gbit/s, 12.5 GB/s", bytes_per_second=12.5e9, latency=20e-6),
    Link(name="10 Gbit/s, 1.25 GB/s", bytes_per_second=1.25e9, latency=50e-6),
)


def step_seconds(work: Work, link: Link, devices: int) -> float:
    """A step of the same global batch on so many devices.

    The exchange is a ring; it hides behind the backward pass as far as that lasts, but for its last bucket
    (25 MB or less), and the BatchNorm statistics cost another ring of latencies.
    """
    if devices == 1:
        return work.seconds
    ring = 2 * (devices - 1) * link.latency
    share = PASSES_OVER_GRADIENTS * (devices - 1) / devices
    exchange = ring + share * work.gradients / link.bytes_per_second
    last = ring + share * min(25e6, work.gradients) / link.bytes_per_second
    computing = work.seconds / devices
    return computing + max(last, exchange - BACKWARD * computing) + ring


def estimates() -> list[dict[str, Any]]:
    """Estimate the speed-up over one device."""
    return [
        {
            "step": work.name,
            "link": link.name,
            "devices": devices,
            "milliseconds": round(1000 * step_seconds(work, link, devices), 2),
            "times_as_fast": round(work.seconds / step_seconds(work, link, devices), 2),
        }
        for work in STEPS
        for link in LINKS
        for devices in (2, 4, 8, 16)
    ]


def prepare(folder: Path, arch: str) -> None:
    """Write images and a model file of random weights."""
    from bcu_cli.checkpoints import Format, write
    from bcu_cli.images.sources import signs
    from bcu_cli.models import Architecture, metadata_for
    from bcu_cli.models.new_classifier import new_classifier

    signs.write_folder(folder / "photos", PHOTOS, seed=1, labelled=False)
    pictures = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    model = new_classifier(arch, len(signs.CLASSES), pictures, seed=0)
    architecture = Architecture(name=arch, source="random weights", num_classes=len(signs.CLASSES))
    metadata = metadata_for(architecture, model.preprocessing, list(signs.CLASSES))
    write(
        folder / "model.safetensors", model.network.state_dict(), format=Format.SAFETENSORS, metadata=metadata
    )


def cleanse(folder: Path, devices: int, threads: int, options: argparse.Namespace) -> dict[str, float]:
    """Run one cleansing."""
    words = f"cleanse {folder}/model.safetensors --images {folder}/photos --out {folder}/out.safetensors"
    words += f" --method bcu --epochs {options.epochs} --batch-size {options.batch_size} --json"
    words += f" --device {options.device} --devices {devices}"
    ran = subprocess.run(  # noqa: S603 - our own program, words of our own
        [sys.executable, "-m", "bcu_cli", *words.split()],
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
    )
    if ran.returncode:
        sys.exit(ran.stderr.decode())
    report = json.loads(ran.stdout)
    training = report["training"][0]
    return {
        "images_per_second": training["images_per_second"],
        "training_seconds": training["seconds"],
        "all_seconds": report["seconds"]["total"],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the variants in turns, and return the medians."""
    cores = len(os.sched_getaffinity(0))
    share = max(1, cores // options.devices)
    ways = {"one process": (1, share), f"{options.devices} processes": (options.devices, share)}
    if options.device == "cpu":
        ways["one process, the threads of all"] = (1, share * options.devices)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    loads = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options.arch)
        for _ in range(options.rounds):
            for name, (devices, threads) in ways.items():
                loads.append(os.getloadavg()[0])
                runs[name].append(cleanse(Path(folder), devices, threads, options))
    speed = {name: statistics.median(run["images_per_second"] for run in some) for name, some in runs.items()}
    one = speed["one process"]
    return {
        "device": options.device,
        "arch": options.arch,
        "images": 8 * PHOTOS * 9 // 10,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "threads_each": share,
        "cores": cores,
        "load_before_each_run": [round(load, 1) for load in loads],
        "runs": runs,
        "images_per_second": speed,
        "times_as_fast": {name: round(value / one, 2) for name, value in speed.items()},
    }


def main() -> None:
    """Measure, unless it is only to be estimated, and print the JSON document."""
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--estimate", action="store_true", help="measure nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if gpus > 1 else "cpu")
    parser.add_argument("--devices", type=int, help="as many as there are GPUs; 2 processes on the CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arch", default="resnet14")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    options.devices = options.devices or (gpus if options.device == "cuda" else 2)
    made = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    assumed = {"steps": [asdict(work) for work in STEPS], "links": [asdict(link) for link in LINKS]}
    measured = {} if options.estimate else measure(options)
    found = {"versions": made, **measured, "on_paper": estimates(), "assumed": assumed}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
