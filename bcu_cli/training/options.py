"""Options of a training: length, batches, learning rate and schedule, augmentation, averaging."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, pi
from typing import Literal

from bcu_cli.errors import UsageError
from bcu_cli.images.augmentation import Augmentation

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "one-cycle", "steps", "constant"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of a training.

    Args:
        epochs: Passes over the images.
        epoch_steps: Most steps of an epoch; an epoch then covers a new random part of the images. None covers
            all images.
        batch_size: Most images in a step; batch sizes within an epoch differ by at most one.
        optimizer: ``sgd``, or ``adamw`` (Loshchilov & Hutter, ICLR 2019) with torch's betas.
        learning_rate: Peak learning rate.
        schedule: ``cosine`` falls from the peak to 0, and ``constant`` keeps the peak. ``one-cycle`` first
            rises for a quarter of the steps, then falls, both linearly. ``steps`` divides it by 10 after
            a half and after three quarters of the steps (the paper's milestones: 100 and 150 of 200 epochs).
        momentum: Momentum of SGD.
        nesterov: Whether SGD uses Nesterov momentum.
        weight_decay: Weight decay; SGD applies it to all parameters, AdamW to matrices and kernels alone.
        augmentation: Random augmentation of each image in each epoch.
        ema: Decay, in (0, 1), of an exponential moving average that replaces the weights at the end. None
            keeps the last weights.
    """

    epochs: int
    epoch_steps: int | None = None
    batch_size: int = 256
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.01
    schedule: Schedule = "cosine"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    augmentation: Augmentation = field(default_factory=Augmentation)
    ema: float | None = None

    def __post_init__(self) -> None:
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"an average with a decay of {self.ema} makes no sense", "--ema 0.99")

    def share_of_rate(self, progress: float) -> float:
        """Share of the peak learning rate at ``progress`` in [0, 1)."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            return (1.0 + cos(pi * progress)) / 2.0
        if self.schedule == "steps":
            return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
        rise = 0.25
        return progress / rise if progress < rise else (1.0 - progress) / (1.0 - rise)
