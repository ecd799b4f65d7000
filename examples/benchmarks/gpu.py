"""What a quarter of an hour of a GPU shows, the most valuable first; writes JSON after each step.

    python examples/benchmarks/gpu.py --out gpu.json [--seconds 900] [--only STEP] [--smoke]

The steps:

- tests: the tests that are marked ``gpu``;
- speed: the figures ``profile`` and ``start_up`` of ``speed.py``;
- resnet50, vit_b16: ``bcu cleanse`` of 5,000 images at 224x224, with random weights, with seconds, memory and
  the share of the device's peak;
- resnet50_scan, vit_b16_scan: ``bcu inspect --scan`` of the same networks.

A step that takes longer than the time that is left is ended, and the others are left out; the document says
so. --smoke runs all of it in a size for a CPU: it shows that the script runs, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
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

HERE = Path(__file__).resolve().parent
BCU = (sys.executable, "-m", "bcu_cli")
_SECONDS_TO_END = 10.0


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to cleanse and scan, and the images for it."""

    arch: str
    side: int
    images: int


NETWORKS = {
    "resnet50": Network(arch="torchvision:resnet50", side=224, images=5000),
    "vit_b16": Network(arch="timm:vit_base_patch16_224", side=224, images=5000),
}
SMOKE = {name: Network(arch="resnet8", side=16, images=64) for name in NETWORKS}


class Session:
    """One session on the device.

    Args:
        seconds: The time that all steps have together.
        device: The device.
        folder: A folder for files.
        smoke: Whether sizes are those that only show that it runs.
    """

    def __init__(self, seconds: float, device: devices.Device, folder: Path, *, smoke: bool) -> None:
        self.device = device
        self.folder = folder
        self.smoke = smoke
        self._ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._ends - time.monotonic()

    def run(self, *words: object) -> tuple[int, str, str]:
        """Run a command with its children until the time is over: its exit code, stdout and stderr.

        Raises:
            TimeoutError: The time is over.
        """
        command = tuple(map(str, words))
        print(f"{self.left:.0f} s left: {shlex.join(command)}", file=sys.stderr, flush=True)
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as ran:  # noqa: S603
            try:
                out, err = ran.communicate(timeout=max(1.0, self.left))
            except subprocess.TimeoutExpired as over:
                _end(ran)
                raise TimeoutError(f"{shlex.join(command)} was ended when the time was over") from over
        return ran.returncode, out, err

    def document(self, *words: object, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """The JSON document that a command prints.

        Raises:
            RuntimeError: It ended with another exit code than ``codes``, or without a document.
        """
        code, out, err = self.run(*words)
        if code not in codes or not out.startswith("{"):
            raise RuntimeError(f"exit code {code}: {err.strip()[-2000:]}")
        found: dict[str, Any] = json.loads(out)
        return found


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.communicate(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            pass
        return


def tests(session: Session) -> dict[str, Any]:
    """The tests marked ``gpu``; all of them are skipped without one."""
    where = HERE.parents[1] / "tests"
    marked = where / "training/test_gpu.py" if session.smoke else where
    words = ("-m", "pytest", "-q", "-m", "gpu", "-n0", "-p", "no:cacheprovider", "--tb=short", marked)
    code, out, err = session.run(sys.executable, *words)
    return {"exit_code": code, "passed": code == 0, "output": (out + err)[-8000:]}


def speed(session: Session) -> dict[str, Any]:
    """The figures of ``speed.py`` that need no images of the user."""
    figures = ("profile",) if session.smoke else ("profile", "start_up")
    only = [word for name in figures for word in ("--only", name)]
    quick = ("--quick",) if session.smoke else ()
    words = (*only, *quick, "--device", session.device.torch)
    return session.document(sys.executable, HERE / "speed.py", *words)


def cleansing(name: str) -> Callable[[Session], dict[str, Any]]:
    """The step that cleanses a network by the default method."""

    def step(session: Session) -> dict[str, Any]:
        model, images = drawn(session, name)
        short = ("--method", "bcu", "--epochs", 1, "--batch-size", 32) if session.smoke else ()
        words = ("--images", images, "--out", session.folder / f"{name}.out.safetensors", "--force", "--json")
        on = ("--device", session.device.torch)
        report = session.document(*BCU, "cleanse", model, *words, *short, *on, codes=(0, 1, 2))
        return {key: report[key] for key in ("verdict", "training", "seconds", "peak_memory", "device")}

    return step


def scanning(name: str) -> Callable[[Session], dict[str, Any]]:
    """The step that scans a network."""

    def step(session: Session) -> dict[str, Any]:
        model, images = drawn(session, name)
        words = ("--scan", "--images", images, "--json", "--device", session.device.torch)
        started = time.perf_counter()
        report = session.document(*BCU, "inspect", model, *words, codes=(0, 1, 2))
        (file,) = report["files"]
        scan = file.get("scan") or {}
        found = {key: scan.get(key) for key in ("verdict", "suspicion", "device")}
        seconds = {each["detector"]: each["seconds"] for each in scan.get("detectors", [])}
        whole = time.perf_counter() - started
        return {**found, "problem": file["problem"], "seconds": seconds | {"total": whole}}

    return step


STEPS: dict[str, Callable[[Session], dict[str, Any]]] = {
    "tests": tests,
    "speed": speed,
    "resnet50": cleansing("resnet50"),
    "resnet50_scan": scanning("resnet50"),
    "vit_b16": cleansing("vit_b16"),
    "vit_b16_scan": scanning("vit_b16"),
}
"""In the order of their value."""


def drawn(session: Session, name: str) -> tuple[Path, Path]:
    """A file of random weights, and a folder of drawn images; made at the first call."""
    network = (SMOKE if session.smoke else NETWORKS)[name]
    model, images = session.folder / f"{name}.safetensors", session.folder / f"images-{network.images}"
    if not images.exists():
        signs.write_folder(images, -(-network.images // len(signs.CLASSES)), seed=0, labelled=False)
    if not model.exists():
        pixels = torch.randint(0, 256, (8, 3, network.side, network.side), dtype=torch.uint8)
        made = new_classifier(network.arch, len(signs.CLASSES), pixels, seed=0)
        known = Architecture(name=network.arch, source="benchmark", num_classes=len(signs.CLASSES))
        metadata = metadata_for(known, made.preprocessing, list(signs.CLASSES))
        write(model, made.network.state_dict(), format=Format.SAFETENSORS, metadata=metadata)
    return model, images


def outcome(session: Session, step: Callable[[Session], dict[str, Any]]) -> dict[str, Any]:
    """What a step finds, with its seconds; an error is a finding too, since other steps may succeed."""
    started = time.perf_counter()
    try:
        found: dict[str, Any] = {"found": step(session)}
    except (TimeoutError, RuntimeError, OSError, ValueError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    """Run the steps, and write the document after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=900.0, help="the time of all steps together")
    parser.add_argument("--only", choices=STEPS, action="append", help="this step; repeatable")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--smoke", action="store_true", help="a size for a CPU that shows that it runs")
    given = parser.parse_args()
    device = devices.choose(given.device)
    if device.torch.type == "cpu" and not given.smoke:
        parser.error("there is no GPU; --smoke shows on a CPU that it runs")
    wanted = given.only or list(STEPS)
    document: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        **environment(device),
        "smoke": given.smoke,
        "steps": {},
        "left_out": wanted,
    }
    with tempfile.TemporaryDirectory() as folder:
        session = Session(given.seconds, device, Path(folder), smoke=given.smoke)
        for place, name in enumerate(wanted, start=1):
            if session.left <= 0:
                break
            document["steps"][name] = outcome(session, STEPS[name])
            document["left_out"] = wanted[place:]
            given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
