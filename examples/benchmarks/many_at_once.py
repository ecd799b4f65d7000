"""Do k small networks train faster at once than one after another? Prints one JSON document.

    python examples/benchmarks/many_at_once.py [--arch resnet14] [--networks 2]

Compares three ways on this machine's CPU, in trained images a second over all networks. The first trains one
after another with all threads. The second trains in a process each with its share of the threads, as ``bcu
attack all`` does. The third is one network with grouped convolutions, which is what vectorising over the
networks comes to.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.models import build
from bcu_cli.training import devices

BATCH_SIZE, CLASSES, SECONDS = 128, 43, 15.0


class Grouped(nn.Module):
    """k copies of a network side by side: their channels are the groups of each convolution."""

    def __init__(self, network: nn.Module, copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.network = network
        for module in list(network.modules()):
            for name, child in module.named_children():
                setattr(module, name, _widened(child, copies))

    def forward(self, images: Tensor) -> Tensor:
        """``[N, k C, H, W]`` to ``[N, k K]``."""
        logits: Tensor = self.network(images)
        return logits


def _widened(layer: nn.Module, copies: int) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        channels = layer.in_channels * copies, layer.out_channels * copies
        shape: dict[str, Any] = {
            "kernel_size": layer.kernel_size,
            "stride": layer.stride,
            "padding": layer.padding,
            "bias": layer.bias is not None,
        }
        return nn.Conv2d(*channels, groups=layer.groups * copies, **shape)
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(layer.num_features * copies)
    if isinstance(layer, nn.Linear):  # each copy computes all outputs, which costs little
        return nn.Linear(layer.in_features * copies, layer.out_features * copies)
    return layer


def images_per_second(arch: str, copies: int, threads: int) -> float:
    """Images that one process trains on in a second, those of each copy counted."""
    torch.set_num_threads(threads)
    network = build(arch, num_classes=CLASSES, input_size=(3, 32, 32))
    network = (network if copies == 1 else Grouped(network, copies)).to(memory_format=torch.channels_last)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.rand(BATCH_SIZE, 3 * copies, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (BATCH_SIZE, copies))
    device = devices.choose("cpu")

    def step() -> None:
        optimizer.zero_grad()
        with device.autocast():
            logits = network(images).float().view(BATCH_SIZE, copies, CLASSES)
            loss = F.cross_entropy(logits.transpose(1, 2), labels)
        loss.backward()
        optimizer.step()

    step()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        step()
        steps += 1
    return BATCH_SIZE * copies * steps / (time.perf_counter() - started)


def main() -> None:
    """Measure the three ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arch", default="resnet14")
    parser.add_argument("--networks", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    cores, k = os.cpu_count() or 1, chosen.networks
    one_by_one = images_per_second(chosen.arch, 1, cores)
    grouped = images_per_second(chosen.arch, k, cores)
    with multiprocessing.get_context("spawn").Pool(k) as pool:
        shares = [(chosen.arch, 1, max(1, cores // k))] * k
        at_once = sum(pool.starmap(images_per_second, shares, chunksize=1))
    report = {
        "arch": chosen.arch,
        "networks": k,
        "cores": cores,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "images_per_second": {
            "one after another": round(one_by_one),
            "a process each": round(at_once),
            "one grouped network": round(grouped),
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
