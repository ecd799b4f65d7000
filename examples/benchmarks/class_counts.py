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

from bcu_cli.checkpoints import Format, write
from bcu_cli.models import Architecture, metadata_for
from bcu_cli.models.classifier import Classifier
from bcu_cli.models.new_classifier import new_classifier
from bcu_cli.report.document import environment
from bcu_cli.training import devices

COUNTING = "--counting"
"""The first word of a process that runs a command of bcu and counts."""


def drawn(path: Path, arch: str, classes: int, side: int) -> None:
    """Write a network with random weights."""
    pixels = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8)
    made = new_classifier(arch, classes, pixels, seed=0)
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
    parser.add_argument("--epochs", type=int, default=1, help="epochs of the cleansing")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    done: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"classes": {}}
    done |= environment(devices.choose()) | {"arch": options.arch, "side": options.side}
    for classes in options.classes:
        if str(classes) in done["classes"]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            model, out = Path(folder) / "model.safetensors", Path(folder) / "out.safetensors"
            drawn(model, options.arch, classes, options.side)
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
