"""Fine-tuning: the suspicious network is trained on with clean labelled images, and nothing else is done.

The baseline of the field; the settings are those of the BCU paper (supplement B): SGD with a momentum of
0.9, a weight decay of 5e-4 and a learning rate of 0.01, 100 epochs. Deviation: the paper names no schedule;
here the learning rate falls to 0 along a cosine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from bcu_cli.defenses.base import DefenseOptions, TrainedDefense, TrainedOptions
from bcu_cli.defenses.finetuning import finetuning
from bcu_cli.training.loop import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator


class FineTuning(TrainedDefense[TrainedOptions]):
    """Plain fine-tuning."""

    name = "ft"
    paper = "fine-tuning, as in Pang et al., CVPR 2023, supplement B"
    Options: ClassVar[type[DefenseOptions]] = TrainedOptions

    def stages(self) -> Iterator[Stage]:
        """One training."""
        yield Stage(title="fine-tuning", training=finetuning(self, self.student, self.options))

    def did(self) -> dict[str, Any]:
        """Nothing but that training."""
        return {}
