"""What an attack is, its options, and how one is found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli import attacks
from bcu_cli.errors import UsageError
from bcu_cli.images.augmentation import Augmentation
from bcu_cli.training.loop import Stage, Training
from bcu_cli.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device
    from bcu_cli.training.loop import Companion, Objective
    from bcu_cli.triggers.base import Target, Trigger


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """How a backdoored network is trained.

    Deviation from the paper (200 epochs, steps at 100 and 150): a one-cycle schedule of 30 epochs.

    Args:
        target_class: What triggered images are to be answered with.
        poison_rate: Share of images that are triggered, in (0, 1]: of the whole training set as in the BCU
            paper (of each batch, where an attack triggers inside the training), or of the target class where
            the attack leaves labels alone.
        training: Epochs, learning rate, augmentation.
        seed: Decides initial weights, poisoned images, and the order and views of the images.
    """

    target_class: Target = 0
    poison_rate: float = 0.1
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


class Attack(ABC):
    """One attack on one network: made with everything it needs, then its stages are trained in order.

    Subclasses set ``name`` (that of their module), ``trigger_name``, and the BCU paper's ``poison_rate`` and
    ``augmentation``.

    Args:
        model: The network to be trained, with random weights.
        data: The labelled training images.
        trigger: What is implanted; an attack may train it too. None implants nothing.
        options: How.
        device: Where.
        surrogate: A classifier of these images to craft perturbations with, for the attacks that
            ``need_surrogate``; None trains one.

    Raises:
        UsageError: The target class or the rate makes no sense for these images.
    """

    name: ClassVar[str]
    trigger_name: ClassVar[str | None]
    poison_rate: ClassVar[float] = 0.1
    clean_label: ClassVar[bool] = False
    needs_surrogate: ClassVar[bool] = False
    augmentation: ClassVar[Augmentation] = Augmentation(flip=False)

    def __init__(
        self,
        model: Classifier,
        data: ImageSet,
        trigger: Trigger | None,
        options: AttackOptions,
        *,
        device: Device,
        surrogate: Classifier | None = None,
    ) -> None:
        if data.labels is None:
            raise ValueError("an attack needs labels")
        self.model = model
        self.data = data
        self.labels = data.labels
        self.trigger = trigger
        self.options = options
        self.device = device
        self.surrogate = surrogate
        _refuse_nonsense(self)

    @property
    def poisoned(self) -> int:
        """Number of images that are triggered in an epoch; about, where each batch has its share."""
        if self.trigger is None:
            return 0
        return round(self.options.poison_rate * len(candidate_index(self.data, self)))

    @abstractmethod
    def stages(self) -> Iterator[Stage]:
        """The trainings that it takes, each made when those before it have been run."""

    def training(
        self,
        objective: Objective,
        *,
        images: Tensor | None = None,
        options: TrainingOptions | None = None,
        companions: Sequence[Companion] = (),
    ) -> Training:
        """The training of the attacked network by an objective, on the attack's images if on no others."""
        return Training(
            self.model,
            self.data.images if images is None else images,
            objective,
            options or self.options.training,
            device=self.device,
            seed=self.options.seed,
            companions=companions,
        )


def find(name: str) -> type[Attack]:
    """The attack called ``name``, or ``none``: the training of a clean network.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in {*attacks.names(), "none"}:
        raise UsageError(
            f"there is no attack called {name}", f"there are {', '.join(attacks.names())}, and none"
        )
    module = import_module(f"bcu_cli.attacks.{name.replace('-', '_')}")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    found: type[Attack] = next(
        c for c in classes if issubclass(c, Attack) and c.__module__ == module.__name__
    )
    return found


def candidate_index(data: ImageSet, attack: Attack) -> Tensor:
    """The index, int64 ``[M]``, of the images that an attack may trigger."""
    if not attack.clean_label:
        return torch.arange(len(data))
    wanted = torch.as_tensor(attack.options.target_class)
    return (attack.labels == wanted).nonzero()[:, 0]


def _refuse_nonsense(attack: Attack) -> None:
    target, classes = attack.options.target_class, len(attack.data.classes)
    if attack.clean_label and target == "next":
        raise UsageError(
            f"{attack.name} changes no label, so it leads to one class only", "--target-class takes a number"
        )
    if isinstance(target, int) and not 0 <= target < classes:
        raise UsageError(
            f"there is no class {target} among {classes} classes", f"--target-class takes 0 to {classes - 1}"
        )
    rate, pool = attack.options.poison_rate, len(candidate_index(attack.data, attack))
    if attack.trigger is None:
        return
    if not 0 < rate < float("inf") or round(rate * pool) == 0:
        raise UsageError(f"a poison rate of {rate} of {pool} images poisons none", "--poison-rate 0.1")
    if rate > 1:
        whose = f"class {target}" if attack.clean_label else "the training set"
        raise UsageError(
            f"a poison rate of {rate} asks for {round(rate * pool)} of the {pool} images of {whose}",
            "--poison-rate takes a share, up to 1",
        )
