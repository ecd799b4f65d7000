"""How often do the strongest sinusoids lead networks to their classes, alone? Prints one JSON document.

    python examples/benchmarks/spectra.py NETWORK... --images DIR [--seed 0] > spectra.json

It searches each network as method ``auto`` does where no other trigger stands out
(``bcu_cli/evaluation/spectrum.py``). For each amplitude it names the classes to which their sinusoids lead
most held-out images, the cycles of these down and across the image, and their lead over the best one to
another class, in log-odds. ``planted`` is what the method takes for a trigger.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.checkpoints import read
from bcu_cli.defenses.auto import Auto, AutoOptions
from bcu_cli.evaluation.spectrum import MIN_LEAD, SpectralAdversary, leads
from bcu_cli.images.folder import hold_out, load_unlabeled
from bcu_cli.models import load
from bcu_cli.training import devices

if TYPE_CHECKING:
    from bcu_cli.evaluation.measures import Proportion
    from bcu_cli.evaluation.spectrum import Candidate

SHOWN = 3
"""Classes that are shown for each amplitude."""


def main() -> None:
    """Search each network and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("networks", type=Path, nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--max-images", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = {file.stem: searched(file, given.images, given.max_images, given.seed) for file in given.networks}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def searched(file: Path, folder: Path, most: int, seed: int) -> list[dict[str, Any]]:
    """The classes to which most images are led, for each amplitude."""
    network, device = load(read(file)).classifier.eval(), devices.choose("auto")
    generator = torch.Generator().manual_seed(seed)
    data = load_unlabeled(folder, network.preprocessing.geometry, at_most=most, generator=generator)
    used, held_out = hold_out(data, 0.1, most=1000, generator=generator)
    method = Auto(network, used, AutoOptions(seed=seed), device=device, held_out=held_out)
    searcher = method.searcher
    seen: list[list[Candidate]] = []
    successes: list[Proportion] = []
    candidates, success = SpectralAdversary.candidates, searcher.success

    def noted(adversary: SpectralAdversary) -> list[list[Candidate]]:
        seen.extend(candidates(adversary))
        return seen

    def measured(*given: Any) -> Proportion:
        successes.append(success(*given))
        return successes[-1]

    SpectralAdversary.candidates = noted  # type: ignore[assignment,method-assign]
    searcher.success = measured  # type: ignore[assignment,method-assign]
    for stage in method.triggers.search_spectral():
        stage.training.run()
    SpectralAdversary.candidates = candidates  # type: ignore[method-assign]
    rows = []
    for start, alike in enumerate(seen):
        some = successes[start * len(alike) : (start + 1) * len(alike)]
        ranked = sorted(zip(alike, some, leads(some), strict=True), key=lambda row: -row[1].value)
        rows += [
            {
                "amplitude": round(each.amplitude, 3),
                "class": each.target,
                "cycles": each.cycles,
                "success": round(alone.value, 3),
                "lead": round(lead, 2),
                "planted": lead >= MIN_LEAD,
            }
            for each, alone, lead in ranked[:SHOWN]
        ]
    return rows


if __name__ == "__main__":
    main()
