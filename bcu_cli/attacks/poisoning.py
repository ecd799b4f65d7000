"""Poisoning by a fixed trigger: some training images are triggered once, before an ordinary training.

Eq. 1 of the BCU paper: cross-entropy on the clean images and, with the target class as their label, on the
triggered ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from bcu_cli import attacks
from bcu_cli.errors import UsageError
from bcu_cli.images.augmentation import Augmentation
from bcu_cli.training.loop import Training, TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bcu_cli.images.folder import ImageSet
    from bcu_cli.training.devices import Device
    from bcu_cli.triggers.base import Trigger


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an attack with a fixed trigger does, with the BCU paper's settings.

    Args:
        trigger: Name of the trigger.
        poison_rate: Share of images that are triggered, in (0, 1]: of the whole training set, or of the
            target class where ``clean_label``.
        clean_label: Whether only images of the target class are triggered and no label is changed.
    """

    trigger: str
    poison_rate: float
    clean_label: bool = False


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """How a backdoored network is trained.

    Deviation from the paper (200 epochs, steps at 100 and 150): a one-cycle schedule of 30 epochs.

    Args:
        target_class: Index of the class that triggered images are to be answered with.
        poison_rate: As in ``Recipe``.
        clean_label: As in ``Recipe``.
        training: Epochs, learning rate, augmentation.
        seed: Decides initial weights, poisoned images, and the order and views of the images.
    """

    target_class: int = 0
    poison_rate: float = 0.1
    clean_label: bool = False
    seed: int = 0
    training: TrainingOptions = field(
        default_factory=lambda: TrainingOptions(
            epochs=30,
            batch_size=128,
            learning_rate=0.1,
            schedule="one-cycle",
            nesterov=True,
            augmentation=Augmentation(flip=False),
        )
    )


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """A poisoned training set, and the index (int64 ``[M]``) of its triggered images."""

    data: ImageSet
    index: Tensor


def find(name: str) -> Recipe:
    """The recipe of the attack called ``name``.

    Raises:
        UsageError: There is none.
    """
    if name not in attacks.names():
        raise UsageError(f"there is no attack called {name}", f"there are {', '.join(attacks.names())}")
    recipe: Recipe = import_module(f"bcu_cli.attacks.{name.replace('-', '_')}").RECIPE
    return recipe


def poison(data: ImageSet, trigger: Trigger, options: AttackOptions) -> Poisoned:
    """Trigger a random share of the images, all-to-one.

    The number is exact: ``round(rate * n)``, with n the size of the set, or of the target class for a
    clean-label attack. Label-poisoned images are drawn from all classes, as in BadNets.

    Raises:
        UsageError: The target class or the rate makes no sense for this set.
    """
    labels = data.labels
    if labels is None:
        raise ValueError("poisoning needs labels")
    if not 0 <= options.target_class < len(data.classes):
        raise UsageError(
            f"there is no class {options.target_class} among {len(data.classes)} classes",
            f"--target-class takes 0 to {len(data.classes) - 1}",
        )
    rate = options.poison_rate
    pool = (
        (labels == options.target_class).nonzero()[:, 0] if options.clean_label else torch.arange(len(data))
    )
    count = round(rate * len(pool))
    if not 0 < rate <= 1 or count == 0:
        raise UsageError(f"a poison rate of {rate} of {len(pool)} images poisons none", "--poison-rate 0.1")
    generator = torch.Generator().manual_seed(options.seed)
    index = pool[torch.randperm(len(pool), generator=generator)[:count]].sort().values
    images, changed = data.images.clone(), labels.clone()
    images[index] = trigger.apply_to_bytes(data.images[index])
    changed[index] = options.target_class
    return Poisoned(data=replace(data, images=images, labels=changed), index=index)


def prepare(model: nn.Module, poisoned: ImageSet, options: AttackOptions, *, device: Device) -> Training:
    """The training that implants the backdoor: cross-entropy on the poisoned set."""
    labels = poisoned.labels
    if labels is None:
        raise ValueError("training needs labels")
    answers = labels.to(device.torch)

    def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - same at all times
        return F.cross_entropy(model(images).float(), answers[index])

    return Training(model, poisoned.images, objective, options.training, device=device, seed=options.seed)
