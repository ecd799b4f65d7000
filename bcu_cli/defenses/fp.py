"""Fine-Pruning: channels that are dormant on clean images are cut, then the network is fine-tuned.

Liu, Dolan-Gavitt, Garg, Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks, RAID
2018, arXiv:1805.12185, section 3. The channels of the last convolution are cut in the order of their mean
activation on clean images, the least active first, until the accuracy falls too far. Then the network is
fine-tuned.

Deviations: the paper leaves the accepted drop to the user; the ``accuracy_drop`` of 4 points is chosen here.
Channels are cut in steps of 1/32 of all channels, not singly, and accuracy is measured on at most 1,000 of
the images. The activation is the positive part of what leaves the norm behind the convolution, which in a
residual block is not all that the next layer sees. ``layers`` prunes more convolutions, from the last one
backwards; each channel's activation then counts in units of its layer's mean. (The BCU paper, supplement B,
prunes the last two blocks of its ResNet-18: ``layers=4``.) Cut channels stay cut through the fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from bcu_cli.defenses.base import DefenseOptions, TrainedDefense, TrainedOptions, require
from bcu_cli.defenses.parts.finetuning import finetuning
from bcu_cli.models.channels import Channels, find_channels, pruned_report
from bcu_cli.models.hooks import watching
from bcu_cli.training.inference import BATCH_SIZE, predict
from bcu_cli.training.loop import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

MOST_JUDGED = 1000
"""Most images that accuracy is measured on while pruning."""
STEPS = 32
"""Steps in which all channels would be cut."""


@dataclass(frozen=True, kw_only=True)
class FpOptions(TrainedOptions):
    """Options of method ``fp``.

    Args:
        layers: Number of convolutions that are pruned, counted from the last.
        accuracy_drop: Pruning ends before the accuracy on the images falls by more than this share.
    """

    layers: int = 1
    accuracy_drop: float = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.layers >= 1, f"{self.layers} layers leave nothing to prune", "--setting layers=1")
        require(
            0 <= self.accuracy_drop < 1,
            f"an accuracy drop of {self.accuracy_drop:g} is no share",
            "--setting accuracy_drop=0.04, for 4 points",
        )


class FinePruning(TrainedDefense[FpOptions]):
    """The method of Liu et al. 2018."""

    name = "fp"
    paper = "Liu et al., Fine-Pruning, RAID 2018"
    Options: ClassVar[type[DefenseOptions]] = FpOptions

    pruned: list[tuple[Channels, Tensor]]
    accuracy: dict[str, float]

    def stages(self) -> Iterator[Stage]:
        """Cut the dormant channels, then fine-tune the rest."""
        network = self.student.network
        layers = find_channels(network, self.example())[-self.options.layers :]
        pruned = self._prune(layers)
        self.pruned = [(channels, index.to(self.device.torch)) for channels, index in pruned]
        training = finetuning(self, self.student)
        learn = training.objective

        def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:
            self._cut()
            return learn(images, index, progress)

        training.objective = objective
        yield Stage(title="fine-tuning", training=training)
        self._cut()

    def details(self) -> dict[str, Any]:
        """The channels that were cut, and the accuracy on the images before and after that."""
        return {"pruned": pruned_report(self.pruned), "accuracy_when_pruned": self.accuracy}

    def _cut(self) -> None:
        for channels, index in self.pruned:
            channels.zero_out(index)

    def _prune(self, layers: list[Channels]) -> list[tuple[Channels, Tensor]]:
        """Cut as many channels as accuracy allows, and return them."""
        images = self.data.images[:: max(1, len(self.data) // MOST_JUDGED)]
        labels = self.labels.cpu()[:: max(1, len(self.data) // MOST_JUDGED)]
        order = dormant_first(activations(self.student, layers, images.to(self.device.torch)))
        state = {name: value.clone() for name, value in self.student.state_dict().items()}

        def accuracy(cut: list[tuple[int, int]]) -> float:
            self.student.load_state_dict(state)
            for channels, index in _by_layer(layers, cut):
                channels.zero_out(index)
            return float((predict(self.student, images, self.device) == labels).float().mean())

        whole = best = accuracy([])
        cut, step = list[tuple[int, int]](), max(1, len(order) // STEPS)
        for count in range(step, len(order), step):
            found = accuracy(order[:count])
            if found < whole - self.options.accuracy_drop:
                break
            cut, best = order[:count], found
        self.accuracy = {"before": whole, "after": best}
        self.student.load_state_dict(state)
        done = _by_layer(layers, cut)
        for channels, index in done:
            channels.zero_out(index)
        return done


def _by_layer(layers: list[Channels], cut: list[tuple[int, int]]) -> list[tuple[Channels, Tensor]]:
    """Group channels, given as (layer, channel), into one index for each layer."""
    return [
        (channels, torch.tensor(sorted(c for layer, c in cut if layer == i), dtype=torch.int64))
        for i, channels in enumerate(layers)
    ]


@torch.no_grad()
def activations(student: nn.Module, layers: list[Channels], images: Tensor) -> list[Tensor]:
    """The mean activation of each channel of some layers, ``[C]`` each, on the CPU.

    Args:
        student: The classifier, in eval mode.
        layers: Layers of the student.
        images: uint8 ``[N, C, H, W]``.
    """
    student.to(images.device)
    totals = [torch.zeros(channels.count) for channels in layers]

    def add(total: Tensor, _: Any, output: Tensor) -> None:
        total.add_(output.float().clamp(min=0).flatten(2).mean(2).sum(0).cpu())

    modules = [channels.convolution if channels.norm is None else channels.norm for channels in layers]
    with watching(zip(modules, totals, strict=True), add):
        for part in torch.split(images, BATCH_SIZE):
            student(part.float() / 255.0)
    return [total / len(images) for total in totals]


def dormant_first(means: list[Tensor]) -> list[tuple[int, int]]:
    """All channels as (layer, channel), the least active first, in units of their layer's mean."""
    ranked = [
        (float(value), layer, channel)
        for layer, mean in enumerate(means)
        for channel, value in enumerate(mean / mean.mean().clamp(min=1e-12))
    ]
    return [(layer, channel) for _, layer, channel in sorted(ranked)]
