"""The base class of attacks, their options, and their look-up by name."""

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
    """Options of an attack.

    Deviation: the paper trains for 200 epochs with steps at 100 and 150. Here 30 epochs follow a one-cycle
    schedule.

    Args:
        target_class: Class that triggered images are to be classified as.
        poison_rate: Share of images that are triggered, in (0, 1]. It is a share of the whole training set,
            as in the BCU paper, or of each batch where the attack triggers during training. A clean-label
            attack takes it of the target class.
        seed: Seed of the initial weights, the poisoned images, and the order and views of the images.
        pretrained: Whether the network starts from given weights; then a surrogate starts from them too.
        training: Epochs, learning rate, augmentation and so on.
    """

    target_class: Target = 0
    poison_rate: float = 0.1
    seed: int = 0
    pretrained: bool = False
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
    """One attack on one network; the caller trains its stages in order.

    Subclasses set ``name`` (that of their module), ``trigger_name``, and the BCU paper's ``poison_rate`` and
    ``augmentation``.

    Args:
        model: The network to be trained, with random or given weights.
        data: The labelled training images.
        trigger: The trigger to implant, which some attacks train too; None trains a clean network.
        options: Options of the attack.
        device: Device of the training.
        surrogate: A classifier of these images, which attacks with ``needs_surrogate`` craft perturbations
            on; None trains one.

    Attributes:
        clean_label: Whether the attack triggers images of the target class only and changes no label.

    Raises:
        UsageError: The target class or the poison rate makes no sense for these images.
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
        _check_options(self)

    @property
    def poisoned(self) -> int:
        """Number of images that are triggered in an epoch; approximate where each batch has its share."""
        if self.trigger is None:
            return 0
        return round(self.options.poison_rate * len(candidate_index(self.data, self)))

    @abstractmethod
    def stages(self) -> Iterator[Stage]:
        """Yield the trainings of the attack; each is constructed when those before it have been run."""

    def training(
        self,
        objective: Objective,
        *,
        images: Tensor | None = None,
        options: TrainingOptions | None = None,
        companions: Sequence[Companion] = (),
    ) -> Training:
        """The training of the attacked network.

        Args:
            objective: The loss.
            images: Training images, uint8 ``[N, C, H, W]``; None takes those of the attack.
            options: Options of the training; None takes those of the attack.
            companions: Other modules that are trained along.
        """
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
        UsageError: No attack has that name.
    """
    if name not in {*attacks.names(), "none"}:
        raise UsageError(
            f"there is no attack called {name}",
            f"there are {', '.join(attacks.names())}; none, for a clean network; and all, for a zoo",
        )
    module = import_module(f"bcu_cli.attacks.{name.replace('-', '_')}")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    found: type[Attack] = next(
        c for c in classes if issubclass(c, Attack) and c.__module__ == module.__name__
    )
    return found


def candidate_index(data: ImageSet, attack: Attack) -> Tensor:
    """Index of the images that an attack may trigger, int64 ``[M]``."""
    if not attack.clean_label:
        return torch.arange(len(data))
    target = torch.as_tensor(attack.options.target_class)
    return (attack.labels == target).nonzero()[:, 0]


def _check_options(attack: Attack) -> None:
    target, classes = attack.options.target_class, len(attack.data.classes)
    if attack.clean_label and target == "next":
        raise UsageError(
            f"{attack.name} changes no label, so it has one target class", "--target-class takes a number"
        )
    if isinstance(target, int) and not 0 <= target < classes:
        raise UsageError(
            f"there is no class {target} among {classes} classes",
            f"--target-class takes 0 to {classes - 1}, or next",
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
