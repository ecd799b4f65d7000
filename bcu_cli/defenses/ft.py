"""Fine-tuning: training of the suspicious network continues on clean labelled images.

This is the baseline of the field. The settings are those of the BCU paper (supplement B): SGD with a momentum
of 0.9, a weight decay of 5e-4 and a learning rate of 0.01, 100 epochs. Deviation: the paper names no
schedule; here the learning rate falls to 0 along a cosine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bcu_cli.defenses.base import DefenseOptions, TrainedDefense, TrainedOptions
from bcu_cli.defenses.parts.finetuning import finetuning
from bcu_cli.training.loop import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator


class FineTuning(TrainedDefense[TrainedOptions]):
    """Plain fine-tuning."""

    name = "ft"
    paper = "fine-tuning, as in Pang et al., CVPR 2023, supplement B"
    Options: ClassVar[type[DefenseOptions]] = TrainedOptions

    def stages(self) -> Iterator[Stage]:
        """Fine-tune the student."""
        yield Stage(title="fine-tuning", training=finetuning(self, self.student))
