"""Do single sinusoids lead a network to a class as often as the best sums of many do? Prints one JSON document.

    python examples/benchmarks/spectra.py NETWORK... --images DIR [--seed 0] > spectra.json

It searches each network as method ``auto`` does where no other trigger stands out (``bcu_cli/evaluation/spectrum.py``). For
each budget it names the classes in whose perturbation one frequency holds the most power: that share, the cycles down
and across the image, and the shares of the held-out images that the whole perturbation and that sinusoid alone lead
there. The sinusoid counts as a trigger where ``planted`` is true.
"""  # noqa: E501 - wide lines of a script

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.checkpoints import read
from bcu_cli.defenses import auto
from bcu_cli.defenses.auto import Auto, AutoOptions
from bcu_cli.evaluation import spectrum
from bcu_cli.images.folder import hold_out, load_unlabeled
from bcu_cli.models import load
from bcu_cli.training import devices

if TYPE_CHECKING:
    from bcu_cli.evaluation.measures import Proportion

SHOWN = 3
"""Classes that are shown for each budget."""


def main() -> None:
    """Search each network and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("networks", type=Path, nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--max-images", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    auto.MIN_CONCENTRATION = 0.0  # type: ignore[attr-defined]
    found = {file.stem: searched(file, given.images, given.max_images, given.seed) for file in given.networks}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def searched(file: Path, folder: Path, most: int, seed: int) -> list[dict[str, Any]]:
    """The classes with the most power in one frequency, for each budget."""
    network, device = load(read(file)).classifier.eval(), devices.choose("auto")
    generator = torch.Generator().manual_seed(seed)
    data = load_unlabeled(folder, network.preprocessing.geometry, at_most=most, generator=generator)
    used, held_out = hold_out(data, 0.1, most=1000, generator=generator)
    method = Auto(network, used, AutoOptions(seed=seed), device=device, held_out=held_out)
    method.teacher.to(device.torch).eval()
    method._teacher_answers, _ = method._answers_and_confident()
    method._classes, method._success_before = list(range(network.num_classes)), {}
    tried: list[tuple[spectrum.Candidate, Proportion, Proportion]] = []
    compare = method._alone_and_together

    def noted(candidate: spectrum.Candidate) -> tuple[Proportion, Proportion]:
        alone, together = compare(candidate)
        tried.append((candidate, alone, together))
        return alone, together

    method._alone_and_together = noted  # type: ignore[method-assign]
    for stage in method._search_for_a_sinusoid():
        stage.training.run()
    rows = []
    for budget in sorted({each.amplitude for each, *_ in tried}):
        alike = [row for row in tried if row[0].amplitude == budget]
        for candidate, alone, together in sorted(alike, key=lambda row: -row[0].concentration)[:SHOWN]:
            rows.append(
                {
                    "amplitude": round(budget, 4),
                    "class": candidate.target,
                    "concentration": round(candidate.concentration, 3),
                    "cycles": candidate.cycles,
                    "together": round(together.value, 3),
                    "alone": round(alone.value, 3),
                    "planted": candidate.concentration >= spectrum.MIN_CONCENTRATION
                    and spectrum.is_planted(alone, together),
                }
            )
    return rows


if __name__ == "__main__":
    main()
