"""Networks backdoored by triggers of other kinds, to judge a method that was finished before it met them.

For method auto that is ``interlace`` alone; ``solarise`` and ``sharpen`` came after its adversary and before
its sinusoidal patterns, and the others were measured while it was made.

    python examples/calibration/unseen.py WORK/gtsrb10 WORK/zoo/gtsrb10-resnet8-unseen --arch resnet8

They are trained as ``calibrate.py train`` trains the others of the ten classes of GTSRB. A share of the
training images gets the trigger and the label of the target class. A network that is there is left alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bcu_cli.attacks.poisoning import Poisoning
from bcu_cli.report import json_file
from bcu_cli.report.schema import with_version
from bcu_cli.workflows.attack import AttackRequest
from bcu_cli.workflows.attack import attack as train_network

TRIGGERS = (
    "lowfreq",
    "colour",
    "refool",
    "rotation",
    "quantise",
    "frequency",
    "solarise",
    "sharpen",
    "interlace",
)
EPOCHS, BATCH_SIZE, INPUT_SIZE, SEED = 8, 64, 32, 0


def train(trigger: str, data: str, arch: str, target: int, rate: float, out: Path) -> None:
    """Write one network, its trigger, the trigger's preview and the report beside each other."""
    attack = type(trigger, (Poisoning,), {"name": trigger, "trigger_name": trigger})
    request = AttackRequest(
        attack=attack,
        data=data,
        arch=arch,
        out=out,
        preview=out.with_name(f"{out.stem}.preview.png"),
        target_class=target,
        poison_rate=rate,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        input_size=INPUT_SIZE,
        seed=SEED,
    )
    report = train_network(request).document
    json_file.write(out.with_suffix(".json"), with_version(report))
    sys.stdout.write(f"{out.stem}: ACC {report['acc']['value']:.2%}, ASR {report['asr']['value']:.2%}\n")


def main() -> None:
    """One network for each trigger; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", help="a folder with train/ and test/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", default="resnet8")
    parser.add_argument("--only", nargs="+", choices=TRIGGERS, default=TRIGGERS)
    parser.add_argument("--target-class", type=int, default=7)
    parser.add_argument("--poison-rate", type=float, default=0.1)
    said = parser.parse_args()
    said.out.mkdir(parents=True, exist_ok=True)
    for trigger in said.only:
        out = said.out / f"{trigger}-t{said.target_class}-s{SEED}.safetensors"
        if not out.with_suffix(".json").exists():
            train(trigger, said.data, said.arch, said.target_class, said.poison_rate, out)


if __name__ == "__main__":
    main()
