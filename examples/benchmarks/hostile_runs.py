"""What files that are made to hang, crash or fill the memory do to each command: seconds, memory, exit code.

    python examples/benchmarks/hostile_runs.py runs/hostile --out examples/results/hostile_runs.json

Each file is given to ``inspect``, ``inspect --scan``, ``evaluate`` and ``cleanse`` alone, then to ``inspect``
and ``inspect --scan`` in a folder with all others and a good one. The files that run longest are also
interrupted, by SIGINT and by SIGTERM. A run is bad if it takes over 120 s or 2 GB, shows a traceback, or goes
on for 3 s after a signal. It is also bad if its exit code is not 0, 1, 2 or 130.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bcu_cli
from bcu_cli.images.sources import signs
from bcu_cli.models import build

MOST_SECONDS, MOST_BYTES, MOST_AFTER_A_SIGNAL = 120.0, 2 * 10**9, 3.0
NORMAL = ("--mean", "0.5", "--std", "0.5", "--input-size", "32")


class Small(nn.Module):
    """A network for 32x32 images of eight classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.fc = nn.Linear(8, 8)

    def head(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.fc(self.conv(x).mean((2, 3)))


class Loop(Small):
    """Never comes to an end."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, if it ended."""
        n = 0
        while n < 1:
            x = torch.relu(x)
        return self.head(x)


class SlowLoop(Small):
    """Never comes to an end, and spends its time in large products."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, if it ended."""
        a = torch.ones([2000, 2000])
        while bool(x.sum() == x.sum()):
            a = torch.matmul(a, a)
        return self.head(x)


class LoopForBatches(Small):
    """Never comes to an end with more than four images."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, if it ended."""
        while x.size(0) > 4:
            x = torch.relu(x)
        return self.head(x)


class LoopInTraining(Small):
    """Never comes to an end in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, if it ended."""
        while self.training:
            x = torch.relu(x)
        return self.head(x)


class Memory(Small):
    """Makes a tensor of 160 GB."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, if there were so much memory."""
        return self.head(x) + torch.ones([200_000, 200_000]).sum()


class MemoryForBatches(Small):
    """Makes a tensor of 160 GB with more than four images."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, if there were so much memory."""
        if x.size(0) > 4:
            return self.head(x) + torch.ones([200_000, 200_000]).sum()
        return self.head(x)


class Lists(Small):
    """Doubles a list again and again."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, if there were so much memory."""
        values = [1]
        for _ in range(60):
            values = values + values
        return self.head(x) * len(values)


class Texts(Small):
    """Doubles a text again and again."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, if there were so much memory."""
        text = "a"
        for _ in range(60):
            text = text + text
        return self.head(x) * len(text)


class WrongStatistics(Small):
    """Gives a raw kernel statistics of one element for eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one: Tensor
        self.register_buffer("one", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, from memory that was written out of bounds."""
        y = self.conv(x)
        y, _, _ = torch.native_batch_norm(y, None, None, self.one, self.one, True, 1.0, 1e-5)
        return self.fc(y.mean((2, 3)))


class DividesByZero(Small):
    """Divides a whole number by zero, which ends a process by SIGFPE."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, if zero could be divided by."""
        return self.head(x) * (7 % (x.size(1) - 3))


class Smallest(Small):
    """Divides the smallest whole number by -1, which ends a process by SIGFPE."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, if that had a result."""
        smallest = -9223372036854775807 - (x.size(1) - 2)
        return self.head(x) * (smallest // (x.size(1) - 4))


class LoopWhileLoading(Small):
    """Its __setstate__ never comes to an end."""

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, bool]:
        return (self.conv.weight, self.fc.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, bool]) -> None:
        self.training = state[2]
        n = 0
        while n < 1:
            self.training = not self.training

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(x)


SCRIPTS: tuple[type[nn.Module], ...] = (
    Loop,
    SlowLoop,
    LoopForBatches,
    LoopInTraining,
    LoopWhileLoading,
    Memory,
    MemoryForBatches,
    Lists,
    Texts,
    WrongStatistics,
    DividesByZero,
    Smallest,
)
INTERRUPTED = (SlowLoop, Loop, LoopInTraining)


def write_files(folder: Path) -> dict[str, Path]:
    """Make the files; returns them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for kind in SCRIPTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = folder / f"{kind.__name__}.pt"
            torch.jit.save(torch.jit.script(kind()), str(path))
        files[kind.__name__] = path
    contents = {
        "deep_code.pt": _deep_code(files["Loop"]),
        "tuple_tower.pt": _saved_like(_tuple_tower()),
        "packed_opcodes.pt": _saved_like(b"\x80\x02" + b"(" * 28_000 + b"t" * 28_000 + b"."),
        "encodings.pt": _saved_like(_encodings()),
        "two_disks.pt": b"PK\x03\x04" + b"a" * 128 + b"PK\x05\x06\x01\x00\x02\x00" + b"\x01\0" * 7,
        "two_disks.txt": b"a" * 132 + b"PK\x05\x06\x01\x00\x02\x00" + b"\x01\0" * 7,
    }
    for name, data in contents.items():
        files[name] = folder / name
        files[name].write_bytes(data)
    return files | _configured(folder)


def _deep_code(script: Path) -> bytes:
    """The archive with 68 kB of brackets in its code."""
    changed = io.BytesIO()
    with zipfile.ZipFile(script) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("__main__.py"):
                data = data.replace(b"n = 0", b"n = " + b"(" * 34_000 + b"0" + b")" * 34_000)
            new.writestr(name, data)
    return changed.getvalue()


def _saved_like(data_pickle: bytes) -> bytes:
    """A file of torch.save with another pickle in it."""
    saved, changed = io.BytesIO(), io.BytesIO()
    torch.save({}, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, data_pickle if name.endswith("data.pkl") else old.read(name))
    return changed.getvalue()


def _tuple_tower() -> bytes:
    """A pickle with a key that holds itself twice, 60 times over: to hash it takes 2**60 steps."""
    tower = b"K\x01q\x00" + b"".join(
        bytes([ord("h"), i, ord("h"), i, 0x86, ord("q"), i + 1]) for i in range(200)
    )
    return b"\x80\x02}" + tower + b"N" + b"s."


def _encodings() -> bytes:
    """A pickle that copies a text of 20 kB four thousand times."""
    text = b"X" + (20_000).to_bytes(4, "little") + b"a" * 20_000
    copy = b"h\x01h\x00X\x06\0\0\0latin1\x86R0"
    return b"\x80\x02" + text + b"q\x000c_codecs\nencode\nq\x010" + copy * 3_000 + b"N."


def _configured(folder: Path) -> dict[str, Path]:
    """Files of weights whose configuration or metadata ask for something huge."""
    weights = {
        name: tensor.contiguous() for name, tensor in build("resnet8", num_classes=8).state_dict().items()
    }
    hub = folder / "hub"
    hub.mkdir(exist_ok=True)
    save_file(weights, hub / "model.safetensors")
    config = {
        "architectures": ["ConvNextForImageClassification"],
        "model_type": "convnext",
        "depths": [1000] * 1000,
        "hidden_sizes": [4096] * 1000,
        "num_stages": 1000,
    }
    (hub / "config.json").write_text(json.dumps(config))
    large = folder / "large_input.safetensors"
    said = {"architecture": "resnet8", "num_classes": "8", "input_size": "[3, 8192, 8192]", "mean": "[0.5]"}
    save_file(weights, large, metadata=said)
    return {"depths": hub / "model.safetensors", "large_input": large}


def measured(
    words: list[str], *, stop: int | None = None, after: float = 0.0, files: int = 1
) -> dict[str, Any]:
    """Run a command line of bcu on so many files; after so many seconds it may be sent a signal."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "bcu_cli", *words], stdout=out, stderr=err)  # noqa: S603 - bcu
        sent = None
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            now = time.monotonic()
            if pid:
                break
            if stop is not None and sent is None and now - started > after:
                process.send_signal(stop)
                sent = now
            if now - started > 2 * files * MOST_SECONDS:
                process.kill()
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        said = err.read().decode(errors="replace")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    result: dict[str, Any] = {
        "exit_code": process.returncode,
        "seconds": round(now - started, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
        "error": errors[0].removeprefix("error: ") if errors else "",
        "traceback": "Traceback" in said,
    }
    if sent is not None:
        result["seconds_after_signal"] = round(now - sent, 2)
    result["good"] = (
        process.returncode in {0, 1, 2, 130}
        and result["seconds"] <= files * MOST_SECONDS
        and result["peak_bytes"] <= MOST_BYTES
        and not result["traceback"]
        and result.get("seconds_after_signal", 0.0) <= MOST_AFTER_A_SIGNAL
    )
    return result


def main() -> None:
    """Run all commands on all files, and write what became of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    root: Path = arguments.folder
    labelled, photos = root / "labelled", root / "photos"
    signs.write_folder(labelled, 8, seed=1)
    signs.write_folder(photos, 80, seed=2, labelled=False)
    files = write_files(root / "files")
    commands = {
        "inspect": lambda file: ["inspect", file],
        "scan": lambda file: ["inspect", file, "--scan", "--images", str(photos), *NORMAL],
        "evaluate": lambda file: ["evaluate", file, "--data", str(labelled), *NORMAL],
        "cleanse": lambda file: [
            *("cleanse", file, "--images", str(photos), "--out", str(root / "out.pt"), *NORMAL),
            *("--method", "bcu", "--epochs", "1"),
        ],
    }
    rows: list[dict[str, Any]] = []

    def note(file: str, command: str, result: dict[str, Any]) -> None:
        rows.append({"file": file, "command": command, **result})
        print(f"{'good' if result['good'] else 'BAD ':4} {file:20} {command:18} {result}", flush=True)
        document = {"bcu": bcu_cli.__version__, "torch": torch.__version__, "rows": rows}
        text = json.dumps(document, indent=1).replace(f"{root}/", "")
        arguments.out.write_text(text + "\n")

    for name, path in files.items():
        options = () if name != "large_input" else NORMAL
        for command, words in commands.items():
            if command == "inspect" or path.suffix != ".txt":
                full = words(str(path))
                if name == "large_input":
                    full = [word for word in full if word not in options]
                note(name, command, measured(full))
    for kind in INTERRUPTED:
        for command in ("scan", "evaluate", "cleanse"):
            for number in (signal.SIGINT, signal.SIGTERM):
                result = measured(commands[command](str(files[kind.__name__])), stop=number, after=6.0)
                note(kind.__name__, f"{command} {number.name}", result)
    save_file(build("resnet8", num_classes=8).state_dict(), root / "files" / "good.safetensors")
    for command in ("inspect", "scan"):
        folder = str(root / "files")
        note("all in one folder", command, measured(commands[command](folder), files=len(files) + 1))
    bad = [row for row in rows if not row["good"]]
    print(f"{len(rows)} runs, {len(bad)} bad")


if __name__ == "__main__":
    main()
