"""Whether ``bcu cleanse --method bcu`` is the paper's procedure: students of both, seed by seed.

    python examples/benchmarks/fidelity.py MODEL --images DIR --data DIR [--epochs 5] --out FILE.json

MODEL is a backdoored network of ``bcu attack`` with its trigger beside it. For each seed it is cleansed
twice, by bcu and by the procedure as the authors published it (``published_procedure.py``). Both begin at
the same student and learn from the same images in fp32, in another order and with other random crops. Then
both students answer the labelled images: ACC, ASR, and the agreement with the original, that is the share
of images on which the predictions are the same. Seeds that FILE holds already are not computed again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from published_procedure import evaluate
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from bcu_cli.checkpoints import read
from bcu_cli.models import load
from bcu_cli.triggers.base import load as load_trigger

PUBLISHED, BCU = "published", "bcu"
FIGURES = ("acc", "asr", "agreement")


def cleanse(side: str, options: argparse.Namespace, seed: int, out: Path) -> None:
    """Write the student of one side."""
    given = [options.model, "--images", options.images, "--out", out, "--device", options.device]
    given += ["--epochs", options.epochs, "--batch-size", options.batch_size, "--seed", seed]
    if side == BCU:
        flip = "--flip" if options.flip else "--no-flip"
        command = ["-m", "bcu_cli", "cleanse", *given, flip, "--method", "bcu", "--precision", "fp32"]
    else:
        command = [Path(__file__).with_name("published_procedure.py"), *given]
        command += ["--flip"] if options.flip else []
    words = [sys.executable, *map(str, command)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own programs


@torch.inference_mode()
def answers(model: nn.Module, batches: DataLoader[Any], device: torch.device) -> Tensor:
    """Predicted class of each image."""
    return torch.cat([model(images.to(device)).argmax(1).cpu() for images, _ in batches])


def measure(
    file: Path, original: Tensor | None, options: argparse.Namespace
) -> tuple[dict[str, float], Tensor]:
    """ACC, ASR and agreement with the original's predictions, in percent; and this file's predictions."""
    device = torch.device(options.device)
    model = load(read(file)).classifier.eval().to(device)
    size = model.preprocessing.input_size
    views = transforms.Compose([transforms.Resize(size[1:]), transforms.ToTensor()])
    batches: DataLoader[Any] = DataLoader(ImageFolder(str(options.data), views), 256)
    predicted = answers(model, batches, device)
    implanted = load_trigger(options.model.with_suffix(".trigger.safetensors"), size)
    acc, asr = evaluate(model, batches, implanted, device)
    same = 1.0 if original is None else float((predicted == original).float().mean())
    return dict(zip(FIGURES, (100 * acc, 100 * asr, 100 * same), strict=True)), predicted


def row(name: str, figures: list[dict[str, float]]) -> str:
    """One line of the table: mean and standard deviation over the seeds."""
    cells = [
        f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
        for values in ([each[figure] for each in figures] for figure in FIGURES)
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Cleanse by both for each seed, write the figures as JSON, and print them as a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of unlabeled images")
    parser.add_argument("--data", type=Path, required=True, help="labelled images, a subfolder a class")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--flip", action="store_true", help="a mirrored image is of its class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    done: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"seeds": {}}
    done["made"] = {"torch": torch.__version__, "device": options.device, "machine": platform.machine()}
    done["options"] = {"epochs": options.epochs, "batch_size": options.batch_size, "flip": options.flip}
    done["original"], original = measure(options.model, None, options)
    for seed in map(str, options.seeds):
        sides = done["seeds"].setdefault(seed, {})
        for side in (PUBLISHED, BCU):
            if side in sides:
                continue
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "student.safetensors"
                cleanse(side, options, int(seed), out)
                sides[side], _ = measure(out, original, options)
            options.out.write_text(json.dumps(done, indent=2) + "\n")
    print("| | ACC | ASR | agreement with the original |\n| --- | --- | --- | --- |")
    print(row("original", [done["original"]]))
    for side in (PUBLISHED, BCU):
        print(row(side, [sides[side] for sides in done["seeds"].values()]))


if __name__ == "__main__":
    main()
