"""Train and scan the networks of `recipes.py`, one after another, and keep what the scan says of each.

    python examples/calibration/collect.py draw SHARED_DATA WORK
    python examples/calibration/collect.py train WORK
    python examples/calibration/collect.py scan WORK --rows examples/calibration/rows.jsonl

``draw`` writes four data sets: the built-in signs, the ten largest classes of GTSRB, and parts of CIFAR-10
and of Tiny-ImageNet-10. SHARED_DATA holds folders ``gtsrb``, ``cifar10`` and ``tiny-imagenet10``, each with
train/ and test/. ``train`` writes the networks, ``scan`` adds a row for each that learnt what it should. Both
leave alone what is done, so they can be stopped at any time, and several processes may share the work.
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
    from collections.abc import Callable, Iterable, Iterator

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


def each_undone(done: Callable[[Recipe], bool], claims: Path, minutes: float) -> Iterator[Recipe]:
    """The recipes that are not done, each while this process alone has it, until a time has passed."""
    until = time.monotonic() + 60.0 * minutes
    claims.mkdir(parents=True, exist_ok=True)
    for recipe in recipes():
        if time.monotonic() > until:
            return
        if not done(recipe) and (claim := _claim(claims / recipe.name)):
            with claim:
                if not done(recipe):
                    yield recipe


def train(work: Path, minutes: float) -> None:
    """Train each network that is not there, and write its report beside it."""
    (work / "networks").mkdir(exist_ok=True)

    def report(recipe: Recipe) -> Path:
        return work / "networks" / f"{recipe.name}.json"

    for recipe in each_undone(lambda each: report(each).exists(), work / "claims" / "train", minutes):
        started = time.perf_counter()
        attack: Any = recipe.attack
        if attack not in {"none", *OWN_ATTACKS}:
            attack = type(attack, (Poisoning,), {"name": attack, "trigger_name": attack})
        request = AttackRequest(
            attack=attack,
            data=str(work / recipe.data),
            out=report(recipe).with_suffix(".safetensors"),
            batch_size=BATCH_SIZE,
            input_size=INPUT_SIZE,
            **recipe.how,
        )
        trained = train_network(request).document
        acc, asr = trained["acc"]["value"], trained["asr"] and trained["asr"]["value"]
        made = {"acc": round(acc, 4), "asr": asr and round(asr, 4), **_environment(trained)}
        made["seconds"] = round(time.perf_counter() - started, 1)
        report(recipe).write_text(json.dumps(made) + "\n")
        _say(f"{recipe.name}: ACC {acc:.1%}, ASR {asr or 0:.1%}, {made['seconds']} s")


def scan(work: Path, rows: Path, minutes: float) -> None:
    """Scan each trained network that has no row."""
    reports = {each.stem: json.loads(each.read_text()) for each in (work / "networks").glob("*.json")}

    def done(recipe: Recipe) -> bool:
        return recipe.name not in reports or recipe.name in known(rows)

    for recipe in each_undone(done, work / "claims" / "scan", minutes):
        started = time.perf_counter()
        trained = reports[recipe.name]
        said = {key: value for key, value in recipe.how.items() if key != "arch"}
        made: dict[str, Any] = {
            "name": recipe.name,
            "data": recipe.data,
            "arch": recipe.arch,
            "kind": recipe.kind,
            "target_class": said.pop("target_class", None),
            "how": said,
            "trained": trained,
        }
        implanted = trained["asr"] is None or trained["asr"] >= IMPLANTED
        if implanted and trained["acc"] >= WORTH_SCANNING:
            made |= scanned(work / "networks" / f"{recipe.name}.safetensors", recipe, work)
            made["seconds"] = round(time.perf_counter() - started, 1)
        with rows.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(made) + "\n")
        _say(f"{recipe.name}: {made.get('verdict', 'not scanned')}, {made.get('seconds', 0)} s")


def known(rows: Path) -> set[str]:
    """Names of the networks that have rows."""
    return {json.loads(line)["name"] for line in rows.read_text().splitlines()} if rows.exists() else set()


def scanned(model: Path, recipe: Recipe, work: Path) -> dict[str, Any]:
    """What ``bcu inspect --scan`` says of a network: the values of each class by detector."""
    network = bcu.load(model, arch=ARCHITECTURES[recipe.arch]["arch"])
    try:
        seen = bcu.scan(network, images=work / f"{recipe.data}-photos").document
    except ScanError as error:
        return {"refused": str(error)}
    return {
        **_environment(seen),
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


def _environment(document: dict[str, Any]) -> dict[str, Any]:
    """The commit of bcu that runs, the device, and the version of torch."""
    git = ["git", "-C", str(Path(bcu.__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - no input
    return {"commit": commit, "device": document["device"]["name"], "torch": document["versions"]["torch"]}


def _claim(path: Path) -> Any:
    """A lock on a network, so that no two processes train it; None if another has it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """The three steps; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("draw", "train", "scan"):
        step = steps.add_parser(name)
        if name == "draw":
            step.add_argument("shared", type=Path)
        step.add_argument("work", type=Path)
        if name == "scan":
            step.add_argument("--rows", type=Path, required=True, help="JSON lines; rows in it are kept")
        if name != "draw":
            step.add_argument("--minutes", type=float, default=float("inf"), help="begin none after that")
    given = vars(parser.parse_args())
    acts: dict[str, Callable[..., None]] = {"draw": draw, "train": train, "scan": scan}
    acts[given.pop("step")](**given)


if __name__ == "__main__":
    main()
