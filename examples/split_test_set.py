"""Divide a labelled test set as the paper does: defense images without labels, and the rest to measure on.

    python examples/split_test_set.py data/cifar10/test runs/cifar10 --defense 5000 --seed 0

makes links in runs/cifar10/defense (one flat folder, file names that say nothing) and runs/cifar10/test
(one subfolder a class). The two have no image in common.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path


def split(source: Path, target: Path, defense: int, seed: int) -> tuple[int, int]:
    """Link ``defense`` random images into one folder and the others into another; returns both counts."""
    files = sorted(file for file in source.glob("*/*") if file.is_file())
    if len(files) <= defense:
        raise SystemExit(f"{source} holds {len(files)} images, not more than {defense}")
    random.Random(seed).shuffle(files)
    for number, file in enumerate(files):
        if number < defense:
            link = target / "defense" / f"{number:05d}{file.suffix}"
        else:
            link = target / "test" / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
    return defense, len(files) - defense


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a folder with one subfolder of images a class")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--defense", type=int, default=5000, help="number of defense images (default 5000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.target.exists():
        raise SystemExit(f"{arguments.target} is there already")
    defense, test = split(arguments.source, arguments.target, arguments.defense, arguments.seed)
    print(f"{defense} images in {arguments.target}/defense, {test} in {arguments.target}/test")


if __name__ == "__main__":
    main()
