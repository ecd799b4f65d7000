"""Published image sets as small as they can be, in the layouts that torchvision reads."""

from __future__ import annotations

import csv
import hashlib
import pickle
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class _Pixels:
    """Pickles as an array whose unpickling warns, as NumPy 2.4.0 to 2.4.4 warn of the batches of 2009."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __reduce__(self):
        return unpickle_pixels, (self.pixels.shape, self.pixels.tobytes())


def unpickle_pixels(shape: tuple[int, ...], content: bytes) -> np.ndarray:
    warnings.warn("dtype(): align should be passed as Python or NumPy boolean", stacklevel=1)
    return np.frombuffer(content, np.uint8).reshape(shape)


def pixels(seed: int, count: int) -> np.ndarray:
    """Noise, uint8 ``[N, 32, 32, 3]``."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, per_batch: int = 20) -> None:
    """Five batches and a test batch of ``pixels(0 to 5, per_batch)``, labels 0 to 9 in turn, as published."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        flat = pixels(seed, per_batch).transpose(0, 3, 1, 2).reshape(per_batch, -1)
        batch = {"data": _Pixels(flat), "labels": [i % 10 for i in range(per_batch)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10_CLASSES}, protocol=2))
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})


def gtsrb(root: Path, per_class: int = 2) -> None:
    """Images of 20x24 pixels, as grey as their class is high: ``per_class`` to train on and one to test."""
    training = root / "gtsrb" / "GTSRB" / "Training"
    test = root / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    with (root / "gtsrb" / "GT-final_test.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Filename", "Width", "Height", "ClassId"])
        for label in range(43):
            picture = Image.new("RGB", (20, 24), (label, label, label))
            folder = training / f"{label:05d}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                picture.save(folder / f"{i:05d}.ppm")
            (folder / f"GT-{label:05d}.csv").write_text("Filename;ClassId\n")
            picture.save(test / f"{42 - label:05d}.ppm")
            rows.writerow([f"{42 - label:05d}.ppm", 20, 24, label])
