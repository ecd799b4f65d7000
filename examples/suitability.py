"""How the thresholds of `bcu cleanse`'s warnings about images came about.

    python examples/suitability.py MODEL FOLDER… [--pictures 1000] [--test LABELLED] [--classes 4]

It prints a line for each folder ("noise" is uniform noise) with what the network predicts for images of it.
With a labelled test set, the line also has the accuracy before and after a cleansing with these images. The
cleansing is the paper's method at three times its ratios, learning rate 0.05, 400 steps of at most 64 images.
``--classes`` takes images of so many classes alone, by the network's own answers.
"""

from __future__ import annotations

import argparse
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bcu_cli.defenses.bcu import Bcu, BcuOptions
from bcu_cli.evaluation.measures import accuracy
from bcu_cli.evaluation.suitability import suitability
from bcu_cli.images.folder import ImageSet, hold_out, list_labelled, load_unlabeled
from bcu_cli.training import devices
from bcu_cli.training.inference import predict
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from bcu_cli.models import Loaded

STEPS, BATCH = 400, 64
DEVICE = devices.choose("cpu")


def load(folder: str, loaded: Loaded, count: int, classes: int | None) -> ImageSet:
    """Images drawn from a folder: so many, if there are as many, of the first ``classes`` classes."""
    preprocessing = loaded.classifier.preprocessing
    generator = torch.Generator().manual_seed(0)
    if folder == "noise":
        shape = (count, *preprocessing.input_size)
        return ImageSet(images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
    drawn = count if classes is None else None
    geometry = preprocessing.geometry
    data = load_unlabeled(Path(folder), geometry, at_most=drawn, generator=generator)
    if classes is None:
        return data
    chosen = (predict(loaded.classifier, data.images, DEVICE) < classes).nonzero()[:, 0]
    return data.subset(chosen[torch.randperm(len(chosen), generator=generator)[:count]])


def cleansed_accuracy(loaded: Loaded, data: ImageSet, test: ImageSet) -> float:
    """ACC of the student of these images."""
    used, held_out = hold_out(data, 0.1, most=1000, generator=torch.Generator().manual_seed(0))
    epochs = ceil(STEPS / ceil(len(used) / BATCH))
    options = BcuOptions(strength=3.0, learning_rate=0.05, batch_size=BATCH, epochs=epochs)
    defense = Bcu(loaded.classifier, used, options, device=DEVICE, held_out=held_out)
    for stage in defense.stages():
        stage.training.run()
    return accuracy(defense.student, test, DEVICE).value


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of images, or the word noise")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1000], help="so many of each folder")
    parser.add_argument("--test", type=Path, help="a folder with one subfolder of images a class")
    parser.add_argument("--classes", type=int, help="of so many classes alone")
    given = parser.parse_args()
    options = loading.ModelOptions(arch=None, input_size=None, mean=None, std=None)
    loaded = loading.load_model(given.model, options, pictures=None)
    test = loading.load_labels_of(list_labelled(given.test), loaded) if given.test else None
    if test:
        print(f"ACC before: {accuracy(loaded.classifier, test, DEVICE).value:.2%}", flush=True)
    for folder in given.folders:
        for count in given.pictures:
            data = load(folder, loaded, count, given.classes)
            suits = suitability(loaded.classifier, data.images, DEVICE)
            after = f", ACC after {cleansed_accuracy(loaded, data, test):.2%}" if test else ""
            print(
                f"{folder}: {suits.images} images, {suits.answered} of {len(suits.counts)} classes, "
                f"effective {suits.effective_classes:.2f}, rarest {min(suits.counts)}, "
                f"median confidence {suits.median_confidence:.2f}{after}",
                flush=True,
            )


if __name__ == "__main__":
    main()
