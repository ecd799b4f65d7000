"""Peak memory, size of the state and seconds for networks of few and of many classes, by scan and cleansing.

    python examples/benchmarks/class_counts.py --images DIR [--classes 10 100 1000] --out FILE.json

For each number of classes a network with random weights (``--arch``) is scanned, then cleansed by the default
method with ``--quick``. Both are processes of their own. That of the cleansing counts the images that go
through a network; a scan opens the file in one more process, which is not counted. The state is what
``--resume`` would start from; its size is looked at twice a second. Numbers that FILE holds already are not
measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bcu_cli.checkpoints import Format, write
from bcu_cli.images.decoding.image import Geometry
from bcu_cli.images.folder import load_unlabeled
from bcu_cli.models import Architecture, metadata_for
from bcu_cli.models.classifier import Classifier
from bcu_cli.models.new_classifier import new_classifier
from bcu_cli.report.document import environment
from bcu_cli.training import devices

FITTED, BATCH = 300, 50
"""Images that a random network is fitted to, and those in a forward pass."""
COUNTING = "--counting"
"""The first word of a process that runs a command of bcu and counts."""


def drawn(path: Path, arch: str, classes: int, images: torch.Tensor) -> None:
    """Write a network with random weights that answers the images with many classes.

    Its BatchNorm statistics are those of the images. Each logit has the mean 0 and the deviation 1 over them:
    bcu judges no network that answers all images alike.
    """
    made = new_classifier(arch, classes, images, seed=0)
    norms = [each for each in made.network.modules() if isinstance(each, nn.BatchNorm2d)]
    last = [each for each in made.network.modules() if isinstance(each, nn.Linear)][-1]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # the mean over all batches
        for batch in torch.split(images, BATCH):
            made.train()(batch.float() / 255.0)
        logits = torch.cat([made.eval()(batch.float() / 255.0) for batch in torch.split(images, BATCH)])
        deviation, mean = torch.std_mean(logits, 0)
        last.weight /= deviation[:, None]
        last.bias.copy_((last.bias - mean) / deviation)
    known = Architecture(name=arch, source="benchmark", num_classes=classes)
    metadata = metadata_for(known, made.preprocessing, [f"class {index}" for index in range(classes)])
    write(path, made.network.state_dict(), format=Format.SAFETENSORS, metadata=metadata)


def measured(*words: object, state: Path | None = None) -> dict[str, Any]:
    """What a command took: seconds, peak memory, images forward, and the largest size of its state."""
    with tempfile.NamedTemporaryFile(delete=False) as counts:
        command = [sys.executable, __file__, COUNTING, counts.name, *map(str, words)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)  # noqa: S603 - bcu
    largest, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while state is not None and not ended.wait(0.5):
            if state.exists():
                largest = max(largest, state.stat().st_size)

    watching = threading.Thread(target=watch)
    watching.start()
    _, status, usage = os.wait4(process.pid, 0)
    ended.set()
    watching.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    found = {
        "exit_code": process.returncode,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
        "images_forward": int(Path(counts.name).read_text() or 0),
    }
    Path(counts.name).unlink()
    return found if state is None else found | {"state_bytes": largest}


def run_counting(file: str, words: list[str]) -> None:
    """Run a command in this process, then write how many images went forward through a network."""
    from bcu_cli.cli.app import run

    forward, images_forward = Classifier.forward, 0

    def counting(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        nonlocal images_forward
        images_forward += len(images)
        return forward(self, images)

    Classifier.forward = counting  # type: ignore[method-assign]
    code = run(words)
    Path(file).write_text(str(images_forward))
    sys.exit(code)


def main() -> None:
    """Measure each number of classes, and write the document after each."""
    if sys.argv[1:2] == [COUNTING]:
        run_counting(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of unlabeled images")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--arch", default="timm:mobilenetv3_small_050")
    parser.add_argument("--side", type=int, default=224, help="height and width of the images, in pixels")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the images in the cleansing")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    done: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"classes": {}}
    done |= environment(devices.choose()) | {"arch": options.arch, "side": options.side}
    size_of_images = Geometry(channels=3, height=options.side, width=options.side)
    generator = torch.Generator().manual_seed(0)
    images = load_unlabeled(options.images, size_of_images, at_most=FITTED, generator=generator).images
    for classes in options.classes:
        if str(classes) in done["classes"]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            model, out = Path(folder) / "model.safetensors", Path(folder) / "out.safetensors"
            drawn(model, options.arch, classes, images)
            size = {"model_bytes": model.stat().st_size}
            scan = measured("inspect", model, "--scan", "--images", options.images)
            words = (
                "--images",
                options.images,
                "--out",
                out,
                "--quick",
                "--force",
                "--epochs",
                options.epochs,
            )
            cleanse = measured("cleanse", model, *words, state=Path(f"{out}.resume"))
        done["classes"][str(classes)] = size | {"scan": scan, "cleanse": cleanse}
        options.out.write_text(json.dumps(done, indent=1) + "\n")
    print("| classes | model | scan: seconds | peak | cleanse: seconds | peak | images | state |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for classes, one in done["classes"].items():
        scan, cleanse = one["scan"], one["cleanse"]
        cells = [
            classes,
            _mb(one["model_bytes"]),
            *_taken(scan),
            *_taken(cleanse),
            _mb(cleanse["state_bytes"]),
        ]
        print("| " + " | ".join(map(str, cells)) + " |")


def _taken(one: dict[str, Any]) -> list[str]:
    images = one["images_forward"]
    return [f"{one['seconds']:.0f}", _mb(one["peak_bytes"]), *([f"{images:,}"] if images else [])]


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
