"""Neural attention distillation: the network learns the attention maps of a fine-tuned copy of itself.

Li, Lyu, Koren, Lyu, Li, Ma, Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural
Networks, ICLR 2021, arXiv:2101.05930. A copy is fine-tuned for 10 epochs; it is the teacher of the suspicious
network, which learns the labels and, weighted by ``beta``, the teacher's attention. Attention is the sum of
the maps' squares over channels (p = 2), at unit length. It is taken after each of the last three stages (BCU
paper, supplement B).

Deviations: the distance of two attention maps is squared and averaged, as in the authors' code; the paper
takes its norm. The paper tunes a ``beta`` for each attack. The authors' code has one for each stage (500,
1000, 1000; in its last version 0, 0, 5000). Here all stages have the same. Both trainings have the BCU
paper's settings, with a cosine schedule. The stages are found by the resolutions of the feature maps.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional as F

from bcu_cli.defenses.base import DefenseOptions, TrainedDefense, TrainedOptions, require
from bcu_cli.defenses.parts.feature_maps import last_of_each_resolution, recorded
from bcu_cli.defenses.parts.finetuning import EPOCHS, finetuning
from bcu_cli.training.loop import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Objective

MAPS = 3
"""Number of stages, counted from the last, whose attention is distilled."""


@dataclass(frozen=True, kw_only=True)
class NadOptions(TrainedOptions):
    """Options of method ``nad``.

    Args:
        beta: Weight of the attention loss.
        teacher_epochs: Passes over the images in the fine-tuning of the teacher.
    """

    beta: float = 1000.0
    teacher_epochs: int = EPOCHS

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, f"a weight of {self.beta:g} makes no sense", "--setting beta=1000")
        require(self.teacher_epochs >= 1, "the teacher needs an epoch or more", "--setting teacher_epochs=10")


class NeuralAttentionDistillation(TrainedDefense[NadOptions]):
    """The method of Li et al. 2021."""

    name = "nad"
    paper = "Li et al., Neural Attention Distillation, ICLR 2021"
    Options: ClassVar[type[DefenseOptions]] = NadOptions

    layers: list[str]

    def stages(self) -> Iterator[Stage]:
        """Fine-tune a copy, then distil its attention into the student."""
        self.layers = last_of_each_resolution(self.student.network, self.example(), MAPS)
        guide = copy.deepcopy(self.student)
        training = finetuning(self, guide, epochs=self.options.teacher_epochs)
        yield Stage(title="fine-tuning the teacher", training=training)
        yield Stage(title="distilling attention", training=self.training(self._objective(guide), reseeded=1))

    def details(self) -> dict[str, Any]:
        """The modules whose attention was distilled."""
        return {"attention_at": self.layers}

    def _objective(self, guide: Classifier) -> Objective:
        labels = self.labels

        def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
            with torch.no_grad(), recorded(guide.network, self.layers) as theirs:
                guide.eval()(images)
            with recorded(self.student.network, self.layers) as ours:
                loss = F.cross_entropy(self.student(images).float(), labels[index])
            return loss + self.options.beta * attention_loss(ours, theirs)

        return objective


def attention(maps: Tensor) -> Tensor:
    """Attention maps ``[N, H·W]`` of unit length: feature maps ``[N, C, H, W]`` squared and summed over C."""
    return F.normalize(maps.float().square().sum(1).flatten(1), dim=1)


def attention_loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    """Mean squared distance of the attention maps at each module, summed over the modules."""
    distances = [
        (attention(ours) - attention(teacher[place])).square().mean() for place, ours in student.items()
    ]
    return torch.stack(distances).sum()
