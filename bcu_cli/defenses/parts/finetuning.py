"""Fine-tuning on labelled images, for method ``ft`` and the methods that contain it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bcu_cli.training.objectives import cross_entropy

if TYPE_CHECKING:
    from bcu_cli.defenses.base import TrainedDefense
    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Training

EPOCHS = 10
"""Epochs of the fine-tuned model that MCR and NAD start from (supplement B of the BCU paper)."""


def finetuning(defense: TrainedDefense[Any], network: Classifier, **other: Any) -> Training:
    """A training of a classifier, in place, by cross-entropy on the defense's images and labels.

    Args:
        defense: The defense whose images, labels, options and device are used.
        network: The classifier.
        other: Training options that replace those of the defense.
    """
    return defense.training(cross_entropy(network, defense.labels), of=network, **other)
