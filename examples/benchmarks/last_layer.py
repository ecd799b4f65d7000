"""How far the rows of a last layer stand out: the largest robust deviation of four values of a row.

    python examples/benchmarks/last_layer.py FILE...

Each file is read as bcu reads it, without running anything in it. The last layer is taken to be the last
matrix in the file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bcu_cli.checkpoints import read
from bcu_cli.detectors.last_layer import deviations


def main(files: list[str]) -> None:
    """Print a line for each file."""
    print("| file | rows | row mean | norm | maximum | bias |\n|---|---|---|---|---|---|")
    for file in files:
        tensors = read(Path(file)).tensors
        name = [each for each, tensor in tensors.items() if each.endswith("weight") and tensor.dim() == 2][-1]
        weight, bias = tensors[name].float(), tensors[name.removesuffix("weight") + "bias"].float()
        values = [weight.mean(1), weight.norm(dim=1), weight.amax(1), bias]
        largest = [deviations(value) for value in values]
        cells = ["-" if each is None else f"{float(each.max()):.2f}" for each in largest]
        print(f"| {Path(file).name} | {len(weight)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
