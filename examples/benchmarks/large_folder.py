"""How soon a cleansing with a very large folder begins, its memory, and how fast images are decoded.

    python examples/benchmarks/large_folder.py runs/large [--files 1000000] [--photos 400] [--steps 10]

Makes FOLDER: hard links to a few road signs of 32x32 pixels, photos of 1024x768 drawn from noise, and a tar
shard. Runs ``bcu cleanse`` on the links for a few steps in a separate process, without a cache and with one
for a fifteenth of them. Decodes both kinds with one process and with two, and prints one JSON document.
FOLDER is removed afterwards. ``speed.py`` runs this, too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from importlib.metadata import version
from io import BytesIO
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bcu_cli.checkpoints import Format, write
from bcu_cli.cli.app import run
from bcu_cli.images.decoding.image import Geometry
from bcu_cli.images.sources import signs
from bcu_cli.images.sources.listing import list_images
from bcu_cli.images.stream import Stream
from bcu_cli.models import Architecture, metadata_for
from bcu_cli.models.new_classifier import new_classifier
from bcu_cli.training import loop

PER_FOLDER, MEMBERS, BATCH_SIZE = 1000, 20_000, 256
PER_CACHED_MEGABYTE = 5000
"""Files; an image of 32x32 pixels takes 3 kB decoded."""
TINY, PHOTO = Geometry(height=32, width=32), Geometry(height=224, width=224, crop_pct=0.875)


def write_links(root: Path, files: int) -> None:
    """So many names for a few PNG files of 32x32 pixels, ``PER_FOLDER`` in a subfolder."""
    signs.write_folder(root / "first", 16, seed=0, labelled=False)
    sources = sorted((root / "first").iterdir())
    for number in range(len(sources), files):
        folder = root / f"{number // PER_FOLDER:05d}"
        if number % PER_FOLDER == 0 or number == len(sources):
            folder.mkdir()
        os.link(sources[number % len(sources)], folder / f"{number:07d}.png")


def write_photos(root: Path, number: int) -> None:
    """JPEG files of 1024x768 pixels, about as many bytes as a camera's."""
    root.mkdir()
    chance = np.random.default_rng(0)
    for i in range(number):
        small = Image.fromarray(chance.integers(0, 256, (96, 128, 3), dtype=np.uint8))
        small.resize((1024, 768), Image.Resampling.BICUBIC).save(root / f"{i:05d}.jpg", quality=90)


def write_shard(path: Path, source: Path) -> None:
    """``MEMBERS`` images in a tar, each with a label beside it."""
    content = source.read_bytes()
    with tarfile.open(path, "w") as shard:
        for i in range(MEMBERS):
            for suffix, data in (("png", content), ("cls", b"0")):
                info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                info.size = len(data)
                shard.addfile(info, BytesIO(data))


def write_model(path: Path) -> None:
    """A ResNet-20 that was not trained."""
    pictures = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    model = new_classifier("resnet20", len(signs.CLASSES), pictures, seed=0)
    architecture = Architecture(name="resnet20", source="benchmark", num_classes=len(signs.CLASSES))
    metadata = metadata_for(architecture, model.preprocessing, list(signs.CLASSES))
    write(path, model.network.state_dict(), format=Format.SAFETENSORS, metadata=metadata)


def cleanse(root: Path, steps: int, cache: str, device: str) -> dict[str, float]:
    """In a process of its own: seconds until the first step has ended, and the most memory that was taken."""
    started = time.time()
    arguments = f"Path({str(root)!r}), {started}, {steps}, {cache!r}, {device!r}"
    code = f"from pathlib import Path; import large_folder; large_folder.child({arguments})"
    ran = subprocess.run(  # noqa: S603 - by -c, as the decoding processes begin with the main file, if there is one
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise SystemExit(ran.stderr)
    measured: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return measured


def child(root: Path, started: float, steps: int, cache: str, device: str) -> None:
    """Cleanse until so many steps are done, then have images decoded until the cache is full."""
    ends: list[float] = []
    measured: dict[str, float] = {}
    step = loop.Training._timed_step

    def timed(training: loop.Training, index: torch.Tensor) -> None:
        step(training, index)
        ends.append(time.time() - started)
        if len(ends) < steps:
            return
        images = training.images
        assert isinstance(images, Stream)  # noqa: S101 - there are too many for anything else
        measured["peak_bytes"] = peak_bytes("self")
        for part in torch.arange(len(images)).split(4096):
            if images.kept == len(images._kept):
                break
            images.take(part)
        measured["kept_decoded"] = images.kept
        measured["peak_bytes_with_a_full_cache"] = peak_bytes("self")
        measured["peak_bytes_of_a_decoding_process"] = max(
            peak_bytes(str(process.pid)) for process in multiprocessing.active_children()
        )
        raise loop.Interrupted

    loop.Training._timed_step = timed  # type: ignore[method-assign, assignment]
    words = ["cleanse", str(root / "model.safetensors"), "--images", str(root / "links"), "--cache", cache]
    run([*words, "--method", "bcu", "--device", device, "--out", str(root / "out.safetensors")])
    times = {
        "seconds_to_first_step": round(ends[0], 1),
        "images_per_second_after_it": round(BATCH_SIZE * (steps - 1) / (ends[-1] - ends[0]), 1),
    }
    print(json.dumps(times | measured))


def peak_bytes(process: str) -> int:
    """The most memory that a process has taken since it began its program."""
    lines = Path("/proc", process, "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def decoding_rate(folder: Path, geometry: Geometry, processes: int, seconds: float) -> float:
    """Images a second that arrive when nothing is trained; the start of the processes left out."""
    stream = Stream(list_images(folder), geometry, cache=0, processes=processes)
    try:
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        shape = len(stream), (BATCH_SIZE,)
        coming, taken = ((torch.randint(*shape, generator=each) for _ in count()) for each in generators)
        stream.follow(coming, lambda: None)
        for _ in range(3):
            stream.take(next(taken))
        started, number = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            number += len(stream.take(next(taken)))
        return round(number / (time.perf_counter() - started), 1)
    finally:
        stream.close()


def listing_seconds(path: Path) -> float:
    """How long the names take."""
    started = time.perf_counter()
    list_images(path)
    return round(time.perf_counter() - started, 2)


def measure(root: Path, given: argparse.Namespace) -> dict[str, object]:
    """All figures, on a folder that is made for them."""
    root.mkdir(parents=True)
    write_model(root / "model.safetensors")
    started = time.perf_counter()
    write_links(root / "links", given.files)
    made = time.perf_counter() - started
    write_photos(root / "photos", given.photos)
    write_shard(root / "shard.tar", next((root / "links/first").iterdir()))
    kinds = {"32x32 PNG": ("links", TINY), "1024x768 JPEG to 224x224": ("photos", PHOTO)}
    caches = ("0", f"{given.files // PER_CACHED_MEGABYTE}MB")
    return {
        "files": given.files,
        "seconds_to_make_them": round(made, 1),
        "listing_seconds": listing_seconds(root / "links"),
        "listing_seconds_of_a_shard": {
            "members": 2 * MEMBERS,
            "seconds": listing_seconds(root / "shard.tar"),
        },
        "cleanse": {cache: cleanse(root, given.steps, cache, given.device) for cache in caches},
        "decoded_per_second": {
            name: {str(n): decoding_rate(root / folder, geometry, n, given.seconds) for n in (1, 2)}
            for name, (folder, geometry) in kinds.items()
        },
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "device": given.device,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pillow": version("pillow"),
        },
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="to be made, and removed")
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of decoding, each way")
    parser.add_argument("--device", default="cpu", help="of the cleansing")
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"{given.folder} is there already, and would be removed afterwards")
    try:
        print(json.dumps(measure(given.folder.resolve(), given), indent=2))
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
