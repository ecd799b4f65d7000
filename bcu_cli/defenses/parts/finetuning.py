"""Fine-tuning on labelled images, for method ``ft`` and the methods that contain it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bcu_cli.training.loop import Training
from bcu_cli.training.objectives import cross_entropy

if TYPE_CHECKING:
    from bcu_cli.defenses.base import Defense, TrainedOptions
    from bcu_cli.models import Classifier

EPOCHS = 10
"""Epochs of the fine-tuned model that MCR and NAD start from (supplement B of the BCU paper)."""


def finetuning(
    defense: Defense[Any], network: Classifier, options: TrainedOptions, *, epochs: int | None = None
) -> Training:
    """A training of a classifier by cross-entropy on the defense's images and labels.

    Args:
        defense: The defense whose images, labels and device are used.
        network: The classifier, trained in place.
        options: Options of the training, after :func:`bcu_cli.defenses.base.decide`.
        epochs: Epochs that replace those of the options.
    """
    how = options.training() if epochs is None else options.training(epochs=epochs)
    return Training(
        network,
        defense.data.images,
        cross_entropy(network, defense.labels),
        how,
        device=defense.device,
        seed=options.seed,
    )
