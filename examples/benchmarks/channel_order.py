"""How far BatchNorm statistics are from images in the orders RGB and BGR, for networks trained on RGB.

    python examples/benchmarks/channel_order.py --models A.safetensors ... --images FOLDER ...

Each network is normalised as its metadata say; in the order BGR mean and deviation are reversed, too. The
thresholds of ``models/inputs/fingerprint.py`` rest on these distances.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bcu_cli.checkpoints import read
from bcu_cli.images.folder import sample
from bcu_cli.images.sources.listing import list_images
from bcu_cli.models import load
from bcu_cli.models.inputs import fingerprint
from bcu_cli.models.preprocessing import Normalisation


def main() -> None:
    """Print a table with a row for each network and folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    options = parser.parse_args()
    print("| network | images | RGB | BGR | BGR / RGB |\n|---|---|---|---|---|")
    listings = [(folder, list_images(folder)) for folder in options.images]
    for path in options.models:
        loaded = load(read(path))
        network, seen = loaded.classifier.network, loaded.preprocessing
        normalisation = Normalisation(name="its own", mean=seen.mean, std=seen.std)
        for folder, listing in listings:
            images = fingerprint.sample(sample(listing, seen.geometry))
            rgb = fingerprint.distance_from_training(network, images, normalisation)
            bgr = fingerprint.distance_from_training(network, images.flip(1), normalisation.reversed)
            if rgb is not None and bgr is not None:
                name = path.stem.rpartition("-")[0]
                print(f"| {name} | {folder.name} | {rgb:.4f} | {bgr:.4f} | {bgr / rgb:.2f} |", flush=True)


if __name__ == "__main__":
    main()
