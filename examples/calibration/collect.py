"""Train and scan the networks of `recipes.py`, one after another, and keep what the scan says of each.

    python examples/calibration/collect.py draw SHARED_DATA WORK
    python examples/calibration/collect.py run WORK --rows examples/calibration/rows.jsonl

``draw`` writes four data sets: the built-in signs, the ten largest classes of GTSRB, and parts of CIFAR-10
and of Tiny-ImageNet-10. SHARED_DATA holds folders ``gtsrb``, ``cifar10`` and ``tiny-imagenet10``, each with
train/ and test/. ``run`` adds one row for each network and never does again what has a row, so it can be
stopped at any time and continued on another machine. Several may run at once on the same rows.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import random
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes import ARCHITECTURES, OWN_ATTACKS, Recipe, recipes

import bcu_cli as bcu
from bcu_cli.attacks.poisoning import Poisoning
from bcu_cli.errors import ScanError
from bcu_cli.images.sources import signs
from bcu_cli.workflows.attack import AttackRequest
from bcu_cli.workflows.attack import attack as train_network

if TYPE_CHECKING:
    from collections.abc import Iterable

DRAWN = {
    "gtsrb10": ("gtsrb", 600, 150, 100),
    "cifar10": ("cifar10", 1000, 150, 100),
    "tiny10": ("tiny-imagenet10", 350, 100, 100),
}
"""Folder of each data set, and its images a class for training, for measuring and for scanning."""
CLASSES = 10
INPUT_SIZE, BATCH_SIZE = 32, 64
IMPLANTED = 0.8
"""The ASR from which on a network counts as backdoored; others are not scanned."""
WORTH_SCANNING = 0.3
"""Least ACC of a network that is scanned."""


def draw(shared: Path, work: Path) -> None:
    """Write the data sets, each with a folder of unlabeled images; no image is in two of their parts.

    Images to measure and to scan with are the test images, and then those of the training set that are left.
    """
    signs.write_folder(work / "signs" / "train", 500, seed=11)
    signs.write_folder(work / "signs" / "test", 150, seed=12)
    signs.write_folder(work / "signs-photos", 120, seed=13, labelled=False)
    for name, (folder, train, test, photos) in DRAWN.items():
        classes = sorted(each.name for each in (shared / folder / "train").iterdir())
        found = {
            each: [_shuffled(shared / folder / part / each) for part in ("train", "test")] for each in classes
        }
        for label in sorted(sorted(classes, key=lambda each: -len(found[each][0]))[:CLASSES]):
            of_training, of_test = found[label]
            others = iter([*of_test, *of_training[train:]])
            _copy(of_training[:train], work / name / "train" / label)
            _copy(islice(others, test), work / name / "test" / label)
            _copy(islice(others, photos), work / f"{name}-photos", prefix=f"{label}-")


def _shuffled(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    random.Random(0).shuffle(files)
    return files


def _copy(files: Iterable[Path], to: Path, prefix: str = "") -> None:
    to.mkdir(parents=True, exist_ok=True)
    for file in files:
        (to / f"{prefix}{file.name}").write_bytes(file.read_bytes())


def run(work: Path, rows: Path, minutes: float) -> None:
    """Train and scan networks until all have rows, or a time has passed."""
    until = time.monotonic() + 60.0 * minutes
    claims = work / "claims"
    claims.mkdir(exist_ok=True)
    for recipe in recipes():
        if time.monotonic() > until:
            return
        if recipe.name in known(rows) or not (claim := _claim(claims / recipe.name)):
            continue
        with claim:
            _add(rows, row(recipe, work))


def known(rows: Path) -> set[str]:
    """Names of the networks that have rows."""
    return {json.loads(line)["name"] for line in rows.read_text().splitlines()} if rows.exists() else set()


def row(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Train one network, scan it, and delete it."""
    started = time.perf_counter()
    out = work / "networks" / f"{recipe.name}.safetensors"
    out.parent.mkdir(exist_ok=True)
    attack: Any = recipe.attack
    if attack not in {"none", *OWN_ATTACKS}:
        attack = type(attack, (Poisoning,), {"name": attack, "trigger_name": attack})
    request = AttackRequest(
        attack=attack,
        data=str(work / recipe.data),
        out=out,
        batch_size=BATCH_SIZE,
        input_size=INPUT_SIZE,
        **recipe.how,
    )
    trained = train_network(request).document
    said = {key: value for key, value in recipe.how.items() if key != "arch"}
    made: dict[str, Any] = {
        "name": recipe.name,
        "data": recipe.data,
        "arch": recipe.arch,
        "kind": recipe.kind,
        "target_class": said.pop("target_class", None),
        "how": said,
        "acc": round(trained["acc"]["value"], 4),
        "asr": trained["asr"] and round(trained["asr"]["value"], 4),
        "commit": commit(),
        "device": trained["device"]["name"],
        "versions": trained["versions"],
        "seconds": [round(time.perf_counter() - started, 1)],
    }
    if made["acc"] >= WORTH_SCANNING and (made["asr"] is None or made["asr"] >= IMPLANTED):
        made |= scanned(out, recipe, work)
        made["seconds"].append(round(time.perf_counter() - started - made["seconds"][0], 1))
    for file in out.parent.glob(f"{recipe.name}.*"):
        file.unlink()
    return made


def scanned(model: Path, recipe: Recipe, work: Path) -> dict[str, Any]:
    """What ``bcu inspect --scan`` says of a network: the values of each class by detector."""
    network = bcu.load(model, arch=ARCHITECTURES[recipe.arch]["arch"])
    try:
        seen = bcu.scan(network, images=work / f"{recipe.data}-photos").document
    except ScanError as error:
        return {"refused": str(error)}
    return {
        "verdict": seen["verdict"],
        "class": seen["class"],
        "suspicion": round(seen["suspicion"], 4),
        "scores": {each["detector"]: round(each["score"], 5) for each in seen["detectors"]},
        "values": {
            each["detector"]: [round(value, 5) for value in each["per_class"]]
            for each in seen["detectors"]
            if each["per_class"]
        },
    }


def commit() -> str:
    """The commit of bcu that runs."""
    git = ["git", "-C", str(Path(bcu.__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - no input


def _claim(path: Path) -> Any:
    """A lock on a network, so that no two processes train it; None if another has it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _add(rows: Path, made: dict[str, Any]) -> None:
    with rows.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(made) + "\n")
    verdict = made.get("verdict", "not scanned")
    asr = "" if made["asr"] is None else f"ASR {made['asr']:.1%}, "
    sys.stdout.write(f"{made['name']}: ACC {made['acc']:.1%}, {asr}{verdict}, {made['seconds']} s\n")
    sys.stdout.flush()


def main() -> None:
    """The two steps; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    drawing = steps.add_parser("draw")
    drawing.add_argument("shared", type=Path)
    drawing.add_argument("work", type=Path)
    running = steps.add_parser("run")
    running.add_argument("work", type=Path)
    running.add_argument("--rows", type=Path, required=True, help="JSON lines; rows that it holds are kept")
    running.add_argument("--minutes", type=float, default=float("inf"), help="begin no network after that")
    given = parser.parse_args()
    if given.step == "draw":
        draw(given.shared, given.work)
    else:
        run(given.work, given.rows, given.minutes)


if __name__ == "__main__":
    main()
