"""How often each ONNX operator that bcu computes was called with hostile arguments, and what came of it.

    python examples/benchmarks/operators_onnx.py SECONDS examples/results/operators_onnx.json

runs the harness of tests/hostile_onnx_operators.py for so long and writes its counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import hostile_onnx_operators as harness  # type: ignore[import-not-found]  # in tests/

GOOD = {"computed", "refused"}


def main() -> None:
    """Run for as long as the command line says, and write the table."""
    found = harness.run(float(sys.argv[1]), most_calls=10**9)
    table = {name: dict(sorted(found[name].items())) for name in harness.NAMES}
    result = {
        "torch": torch.__version__,
        "operators": len(table),
        "calls": sum(sum(of.values()) for of in table.values()),
        "failures": {name: sorted({*of} - GOOD) for name, of in table.items() if {*of} - GOOD},
        "by_operator": table,
    }
    Path(sys.argv[2]).write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(f"{result['operators']} operators, {result['calls']} calls, {result['failures']}\n")


if __name__ == "__main__":
    main()
