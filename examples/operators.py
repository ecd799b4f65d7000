"""Calls every operator that bcu evaluates for TorchScript with hostile arguments, and writes a table.

    PYTHONPATH=tests python examples/operators.py --calls 200 --out examples/results/operators.json

Each operator runs in child processes with 1 GiB more memory than they start with and 10 s for a call. The
table says of each how many calls were made, and how many gave a result; the others raised an error. It also
says how it ended: ``ok``, or what takes it off the list. The kernels that are off it are called as torch has
them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from hostile_calls import Outcome, run_in_children  # type: ignore[import-not-found]  # in tests/
from script_subjects import raw_kernels, subjects  # type: ignore[import-not-found]


def main() -> None:
    """Run the harness and write its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--calls", type=int, default=200, help="calls of each operator, all overloads together"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.empty(1, device="meta").add(1)  # what torch imports for its shape functions is imported once
    groups = defaultdict(list)
    for subject in subjects():
        groups[subject.name.split(" ")[0].split(".")[0]].append(subject)
    start = time.monotonic()
    table: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        calls = -(-options.calls // len(group))
        table[name] = _row(run_in_children(group, calls, seed=options.seed))
        print(f"{time.monotonic() - start:6.0f} s  {name}  {table[name]}", flush=True)
    off = {
        subject.name: _row(run_in_children([subject], options.calls, seed=options.seed))
        for subject in raw_kernels()
    }
    report = {
        "torch": torch.__version__,
        "seed": options.seed,
        "operators": len(table),
        "calls": sum(row["calls"] for row in table.values()),
        "ended_badly": sorted(name for name, row in table.items() if row["ended"] != ["ok"]),
        "on_the_list": table,
        "off_the_list": off,
    }
    lines = json.dumps(report, indent=1)
    options.out.write_text(lines + "\n", encoding="utf-8")


def _row(outcomes: dict[str, Outcome]) -> dict[str, object]:
    return {
        "overloads": len(outcomes),
        "calls": sum(outcome.calls for outcome in outcomes.values()),
        "returned": sum(outcome.returned for outcome in outcomes.values()),
        "ended": sorted({outcome.ended for outcome in outcomes.values()}),
    }


if __name__ == "__main__":
    main()
