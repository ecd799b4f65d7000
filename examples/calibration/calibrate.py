"""Calibrate the thresholds of `bcu inspect --scan` on networks known to be clean or backdoored.

    python examples/calibration/calibrate.py draw GTSRB WORK
    python examples/calibration/calibrate.py train WORK
    python examples/calibration/calibrate.py scan WORK --scores examples/calibration/scores.json
    python examples/calibration/calibrate.py fit examples/calibration/scores.json --out calibration.json

``draw`` makes two data sets: the built-in road signs, and the ten classes of GTSRB (a folder with train/ and
test/) with the most images. ``train`` trains the networks with ``bcu attack all``, ``scan`` looks at each
with ``bcu inspect --scan``; both go on where they stopped. ``fit`` takes a second: it fits units and
thresholds to two thirds of the networks, and prints what they make of the others. What it writes is shipped
as ``bcu_cli/detectors/calibration.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.detectors.verdict import suspicion
from bcu_cli.evaluation.measures import Proportion
from bcu_cli.images.sources import signs

if TYPE_CHECKING:
    from collections.abc import Callable

ATTACKS = ("none", "badnets", "blended", "iab", "lc", "sig", "wanet")
ARCHITECTURES = {
    "plain6": f"{Path(__file__).with_name('networks.py')}:plain6",
    "preact7": f"{Path(__file__).with_name('networks.py')}:preact7",
    "resnet8": "resnet8",
}
EPOCHS = {"signs": 10, "gtsrb10": 8}
TARGETS = {"signs": (1, 4), "gtsrb10": (2, 7)}
STRONGER = ("--setting", "lc.cell=2", "--setting", "badnets.cell=2", "--setting", "sig.delta=60")
"""Settings with which trainings this short implant their triggers; the gates say whether they did."""
CLASSES, TRAIN, TEST, PHOTOS = 10, 600, 150, 100
"""Number of GTSRB classes, and of images per class for training, evaluation and scanning."""
DETECTORS = {"images": ("inversion", "mmbd", "perturbation", "skew", "warping"), "no images": ("mmbd",)}
FALSE_ALARMS, MISSES = 0.05, 0.10
IMPLANTED = 0.8
"""The ASR from which on a network counts as backdoored; the others are left out."""


def draw(gtsrb: Path, work: Path) -> None:
    """Write the two data sets, each with a folder of unlabeled images."""
    signs.write_folder(work / "signs" / "train", 500, seed=11)
    signs.write_folder(work / "signs" / "test", 150, seed=12)
    signs.write_folder(work / "signs-photos", 120, seed=13, labelled=False)
    chance = random.Random(0)
    sizes = {folder.name: len(list(folder.iterdir())) for folder in sorted((gtsrb / "train").iterdir())}
    for name in sorted(sorted(sizes, key=lambda name: -sizes[name])[:CLASSES]):
        for part, count in (("train", TRAIN), ("test", TEST + PHOTOS)):
            files = sorted((gtsrb / part / name).iterdir())
            chance.shuffle(files)
            for index, file in enumerate(files[:count]):
                target = work / "gtsrb10" / part / name / file.name
                if part == "test" and index >= TEST:
                    target = work / "gtsrb10-photos" / f"{name}-{file.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())


def train(work: Path) -> None:
    """Train a zoo for each data set and architecture, and another for attacks that need more epochs."""
    for data, epochs in EPOCHS.items():
        first, second = TARGETS[data]
        for name, arch in ARCHITECTURES.items():
            common = ["--data", work / data, "--arch", arch, "--batch-size", 64, "--input-size", 32]
            short = ["--epochs", epochs, *STRONGER]
            long = ["--epochs", 2 * epochs]
            for only, seed, target, suffix, more in (
                ("none,badnets,blended,sig,lc", 0, first, "", short),
                ("none,badnets,blended", 1, second, "", short),
                (
                    "none,wanet",
                    3,
                    second,
                    "-wanet",
                    [*long, "--poison-rate", 0.2, "--setting", "wanet.strength=3"],
                ),
                ("none,iab", 2, first, "-iab", [*long, "--poison-rate", 0.3]),
            ):
                which = ["--only", only, "--seeds", seed, "--targets", target]
                _bcu(
                    "attack", "all", *common, *more, *which, "--out", work / "zoo" / f"{data}-{name}{suffix}"
                )


def scan(work: Path, scores: Path) -> None:
    """Scan every network that is clean or backdoored, and write the scores into one file."""
    rows = []
    for zoo in sorted((work / "zoo").iterdir()):
        data, arch = zoo.name.split("-")[:2]
        index = json.loads((zoo / "index.json").read_text())
        for entry in index["entries"]:
            asr = entry["asr"] and entry["asr"]["value"]
            if entry["acc"] is None or (asr is not None and asr < IMPLANTED):
                why = "not trained" if entry["acc"] is None else f"ASR {asr:.2%}"
                sys.stderr.write(f"{zoo.name}/{entry['name']} is left out: {why}\n")
                continue
            kept = work / "scans" / zoo.name / f"{entry['name']}.json"
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                model = zoo / f"{entry['name']}.safetensors"
                said = ["--arch", ARCHITECTURES[arch], "--images", work / f"{data}-photos"]
                kept.write_text(_bcu("inspect", model, "--scan", "--json", *said))
            (file,) = json.loads(kept.read_text())["files"]
            rows.append(
                {
                    "data": data,
                    "arch": arch,
                    **{key: entry[key] for key in ("name", "attack", "target_class", "seed")},
                    "acc": entry["acc"]["value"],
                    "asr": asr,
                    "scores": {each["detector"]: each["score"] for each in file["scan"]["detectors"]},
                    "values": {
                        each["detector"]: [round(value, 6) for value in each["per_class"]]
                        for each in file["scan"]["detectors"]
                        if each["per_class"]
                    },
                }
            )
    scores.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def _bcu(*words: object) -> str:
    """Run a command of bcu and return its report; exit codes 1 and 2 are verdicts here."""
    ran = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "bcu_cli", *map(str, words)], stdout=subprocess.PIPE, text=True, check=False
    )
    if ran.returncode not in {0, 1, 2}:
        raise SystemExit(ran.returncode)
    return ran.stdout


@dataclass(frozen=True)
class Network:
    """One row of the scores."""

    row: dict[str, Any]
    held_out: bool

    @property
    def target(self) -> int | None:
        """Target class of the backdoor; None for a clean network."""
        target: int | None = self.row["target_class"]
        return target

    def each_class(self, units: dict[str, float]) -> torch.Tensor:
        """Suspicion by class."""
        return suspicion({k: torch.tensor(v) for k, v in self.row["values"].items()}, units)

    def highest(self, units: dict[str, float]) -> float:
        """Highest suspicion of all classes."""
        return float(self.each_class(units).max())


def networks(scores: Path) -> list[Network]:
    """Read all networks; a third, spread over data sets, architectures and attacks, is held out."""
    rows = json.loads(scores.read_text())
    zoos = sorted({(row["data"], row["arch"]) for row in rows})
    return [
        Network(
            row,
            held_out=(zoos.index((row["data"], row["arch"])) + ATTACKS.index(row["attack"]) + row["seed"]) % 3
            == 0,
        )
        for row in rows
    ]


def fit_units(known: list[Network], names: tuple[str, ...]) -> dict[str, float]:
    """Fit each detector's unit: mean plus two standard deviations of the highest scores of clean networks."""
    clean = [network for network in known if network.target is None]
    reached = {name: torch.tensor([network.highest({name: 1.0}) for network in clean]) for name in names}
    return {name: float(values.mean() + 2.0 * values.std()) for name, values in reached.items()}


def fit_thresholds(known: list[Network], units: dict[str, float]) -> tuple[float, float]:
    """Fit the thresholds of the verdicts ``suspicious`` and ``clean-looking``.

    At most 5 % of clean networks reach the first. It lies just above the highest clean score here, or at the
    95th percentile of a normal distribution with their mean and deviation if that is higher. A tenth of the
    backdoored networks here lie below the second, which is never above the first.
    """
    clean = torch.tensor([n.highest(units) for n in known if n.target is None])
    backdoored = torch.tensor([n.highest(units) for n in known if n.target is not None])
    normal = torch.distributions.Normal(clean.mean(), clean.std()).icdf(torch.tensor(1 - FALSE_ALARMS))
    high = 1.01 * float(torch.maximum(clean.max(), normal))
    return high, min(high, float(backdoored.quantile(MISSES)))


def fit(scores: Path, out: Path) -> None:
    """Fit both calibrations, and print their verdicts on the held-out networks as a table."""
    everything = networks(scores)
    known = [n for n in everything if not n.held_out]
    left_out = [n for n in everything if n.held_out]
    document: dict[str, Any] = {"made_by": "examples/calibration/calibrate.py", "calibrations": {}}
    for mode, names in DETECTORS.items():
        units = fit_units(known, names)
        high, low = fit_thresholds(known, units)
        units = {name: unit * high for name, unit in units.items()}
        words = {id(n): _word(n.highest(units), low / high) for n in everything}
        clean = [n for n in left_out if n.target is None]
        backdoored = [n for n in left_out if n.target is not None]
        document["calibrations"][mode] = {
            "units": {name: round(unit, 6) for name, unit in units.items()},
            "clean_below": round(low / high, 6),
            "networks": [sum(n.target is None for n in known), sum(n.target is not None for n in known)],
            "false_alarms": [sum(words[id(n)] == "suspicious" for n in clean), len(clean)],
            "misses": [sum(words[id(n)] == "clean-looking" for n in backdoored), len(backdoored)],
        }
        sys.stdout.write(f"\n{mode}: {document['calibrations'][mode]}\n\n")
        for title, which in (("held out", left_out), ("fitted to", known)):
            sys.stdout.write(_table(title, which, words, units))
    out.write_text(json.dumps(document, indent=1) + "\n")


def _word(highest: float, clean_below: float) -> str:
    return "suspicious" if highest >= 1 else "clean-looking" if highest < clean_below else "inconclusive"


def _table(title: str, which: list[Network], words: dict[int, str], units: dict[str, float]) -> str:
    lines = [f"| {title} | networks | suspicious | of the right class | inconclusive | clean-looking |"]
    lines.append("|---|---|---|---|---|---|")
    groups = {attack: [n for n in which if n.row["attack"] == attack] for attack in ATTACKS}
    groups["all attacks"] = [n for n in which if n.target is not None]
    for name, group in groups.items():
        if not group:
            continue
        found = [n for n in group if words[id(n)] == "suspicious"]
        right = sum(int(n.each_class(units).argmax()) == n.target for n in found)
        share = Proportion(hits=len(found), of=len(group))
        low, high = share.interval
        others = [sum(words[id(n)] == word for n in group) for word in ("inconclusive", "clean-looking")]
        lines.append(
            f"| {name} | {len(group)} | {len(found)}: {share.value:.0%} ({low:.0%} to {high:.0%}) | {right} "
            f"| {others[0]} | {others[1]} |"
        )
    return "\n".join(lines) + "\n\n"


def main() -> None:
    """The four steps; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name, arguments in {
        "draw": ("gtsrb", "work"),
        "train": ("work",),
        "scan": ("work",),
        "fit": ("scores",),
    }.items():
        step = steps.add_parser(name)
        for argument in arguments:
            step.add_argument(argument, type=Path)
        if name in {"scan", "fit"}:
            step.add_argument("--scores" if name == "scan" else "--out", type=Path, required=True)
    said = vars(parser.parse_args())
    acts: dict[str, Callable[..., None]] = {"draw": draw, "train": train, "scan": scan, "fit": fit}
    acts[said.pop("step")](**said)


if __name__ == "__main__":
    main()
