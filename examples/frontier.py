"""ACC against ASR along the way from an original to the network that was cleansed from it.

    python examples/ablation.py --without "with the gentle level alone" cleanse bad.safetensors --images photos --quick --force --out student.safetensors
    python examples/frontier.py bad.safetensors student.safetensors --data labelled/test --out frontier.json

Each share of the student's weights is mixed with the original's, as ``bcu_cli/defenses/adversarial/mixing.py``
does it, and measured on labelled images. Only networks without re-initialised weights can be mixed. The
trigger lies beside the original, as ``bcu attack`` leaves it; without one there is no ASR. Results of other
pairs of files are kept in ``--out``.
"""  # noqa: E501 - commands to copy

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bcu_cli.checkpoints import read
from bcu_cli.defenses.adversarial.mixing import Mixture
from bcu_cli.evaluation.measures import accuracy, attack_success
from bcu_cli.images.folder import list_labelled
from bcu_cli.models import load
from bcu_cli.training import devices
from bcu_cli.triggers.base import load as load_trigger

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def main() -> None:
    """Measure each mix, keep the figures as JSON, and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="labelled, to measure on")
    parser.add_argument("--out", type=Path, required=True, help="JSON; other pairs that it holds are kept")
    given = parser.parse_args()
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    key = " and ".join("/".join(path.with_suffix("").parts[-2:]) for path in (given.original, given.student))
    kept[key] = rows = frontier(given.original, given.student, given.data)
    given.out.write_text(json.dumps(kept, indent=1) + "\n")
    sys.stdout.write("| share of the student | ACC | ASR |\n|---|---|---|\n")
    for row in rows:
        asr = f"{row['asr']['value']:.2%}" if row["asr"] else ""
        sys.stdout.write(f"| {row['share']} | {row['acc']['value']:.2%} | {asr} |\n")


def frontier(original: Path, student: Path, data: Path) -> list[dict[str, Any]]:
    """ACC and ASR of each mix of two files, on labelled images."""
    device = devices.choose("auto")
    before, after = (load(read(file)).classifier.eval() for file in (original, student))
    images = list_labelled(data).load(before.preprocessing.geometry)
    file = original.with_suffix(".trigger.safetensors")
    implanted = load_trigger(file, before.preprocessing.input_size) if file.exists() else None
    mixture = Mixture(before, after)
    rows = []
    for share in SHARES:
        mixture.take(share)
        row: dict[str, Any] = {"share": share, "acc": accuracy(after, images, device).as_json(), "asr": None}
        if implanted:
            trigger, target = implanted.trigger, implanted.target_class
            row["asr"] = attack_success(after, images, trigger, target, device).asr.as_json()
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
