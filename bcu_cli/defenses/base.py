"""The base classes of defenses and their options, and :func:`find`, which finds a defense by its name."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib import import_module
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from bcu_cli import defenses
from bcu_cli.errors import UsageError
from bcu_cli.images.augmentation import Augmentation
from bcu_cli.training.inference import predict
from bcu_cli.training.loop import Training
from bcu_cli.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bcu_cli.defenses.adversarial.residual_search import FoundTrigger
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.images.stream import Images, StreamedSet
    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device
    from bcu_cli.training.forecast import Outlook
    from bcu_cli.training.loop import Objective, Stage

PAPER_EPOCHS = 100
FEWEST_STEPS, MOST_STEPS = 900, 8000
"""Range of the steps of ``epochs=None``; the paper's settings (2,500 to 20,000 images) lie within."""

MIRROR_AGREEMENT = 0.8
"""Least share of images for which the teacher predicts the same class when mirrored, for mirroring."""

_LEAST = {"batch_size": 2, "learning_rate": 0, "momentum": 0, "weight_decay": 0, "crop_padding": 0}
_MOST = {"momentum": 1}
"""The smallest and the largest values that make sense, by field."""


@dataclass(frozen=True, kw_only=True)
class DefenseOptions:
    """Options of every defense.

    Args:
        seed: Seed of everything that is drawn at random.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not isfinite(value):
                raise UsageError(f"a {words(field.name)} of {value} makes no sense", "give a finite number")
            if value is None:
                continue
            option = f"--{field.name.replace('_', '-')}"
            if (least := _LEAST.get(field.name)) is not None:
                require(
                    value >= least, f"{option} {value} is less than {least}", f"{option} {least}, or more"
                )
            if (most := _MOST.get(field.name)) is not None:
                require(value <= most, f"{option} {value} is more than {most}", f"{option} {most}, or less")


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(DefenseOptions):
    """Options of a defense that trains; the defaults are the BCU paper's (section 4.1, supplement B).

    The optimiser is SGD, but for method ``auto`` on a network with LayerNorm.

    Args:
        epochs: Passes over the images, at least ``fewest_epochs``; a pass has at most ``MOST_STEPS`` steps.
            None is the paper's 100 passes, raised to ``FEWEST_STEPS`` steps or lowered to ``MOST_STEPS``.
        batch_size: Most images in a step.
        learning_rate: Initial learning rate; it falls to 0 along a cosine.
        momentum: Momentum of SGD.
        weight_decay: Weight decay; AdamW applies it to matrices and kernels alone.
        crop_padding: Padding of the random crop, in pixels. None is an eighth of the shorter side, which on
            32x32 images is the paper's 4.
        flip: Whether images are mirrored at random. None asks the teacher, which predicts the same class for
            a mirrored photo, but not for a mirrored traffic sign.
        seed: Seed of the order and augmentation of the images, and of other random draws.
    """

    epochs: int | None = None
    batch_size: int = 256
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_padding: int | None = None
    flip: bool | None = None

    fewest_epochs: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.epochs is None or self.epochs >= self.fewest_epochs,
            f"--epochs {self.epochs} trains nothing",
            f"--epochs auto, or a number from {self.fewest_epochs}",
        )

    def training(self, **other: Any) -> TrainingOptions:
        """The training options that follow from these; ``other`` replaces individual ones."""
        how = TrainingOptions(
            epochs=self.epochs or 0,
            epoch_steps=MOST_STEPS,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            augmentation=Augmentation(crop_padding=self.crop_padding or 0, flip=bool(self.flip)),
        )
        return replace(how, **other)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A defense's judgement of its success.

    Args:
        word: ``cleansed``, ``not cleansed`` or ``could not tell``.
        why: The reason, as a sentence.
    """

    word: Literal["cleansed", "not cleansed", "could not tell"]
    why: str

    @property
    def good(self) -> bool:
        """Whether the network was cleansed."""
        return self.word == "cleansed"


O = TypeVar("O", bound=DefenseOptions)  # noqa: E741 - as in Defense[O]
T = TypeVar("T", bound=TrainedOptions)


class Defense(ABC, Generic[O]):
    """One defense of one network; its stages are trained in order.

    Subclasses set ``name`` (that of their module), ``paper``, the class of their ``Options``, and whether
    they need images and labels.

    Args:
        teacher: The suspicious classifier, images in [0, 1] -> logits ``[N, K]``. It is moved to ``device``
            and put into eval mode; its weights do not change.
        data: The images, with labels (and then in memory) where the defense needs them. None where it needs
            no images.
        options: Options of the defense.
        device: The device to train on.
        held_out: Held-out images for a defense that judges itself; None for other defenses.

    Attributes:
        options: The options after :meth:`decide`.
        student: The cleansed classifier; a copy of the teacher until the stages change it.

    Raises:
        ArchitectureError: The defense cannot handle this network.
        ValueError: The defense needs images, labels or held-out images, and there are none.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    variant: ClassVar[str] = ""
    """How the defense departs from its paper in more than a number; empty if it does not."""
    Options: ClassVar[type[DefenseOptions]]
    needs_images: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    def __init__(
        self,
        teacher: Classifier,
        data: ImageSet | StreamedSet | None,
        options: O,
        *,
        device: Device,
        held_out: ImageSet | None = None,
    ) -> None:
        if self.needs_images and data is None:
            raise ValueError(f"{self.name} needs images")
        if self.needs_labels and (data is None or data.labels is None):
            raise ValueError(f"{self.name} needs labels")
        self.teacher = teacher
        self.device = device
        self._data = data
        self._held_out = held_out
        self.options = self.decide(options)
        self.student = copy_of(teacher)

    @abstractmethod
    def stages(self) -> Iterator[Stage]:
        """The trainings of the defense; each is created when those before it are done.

        After the last one the student is the cleansed network.
        """

    def details(self) -> dict[str, Any]:
        """Details of what was done to the network, as plain values for a report, after the last stage."""
        return {}

    def verdict(self) -> Verdict | None:
        """The defense's judgement after the last stage; None if it does not judge itself."""
        return None

    def found_triggers(self) -> list[FoundTrigger]:
        """The found triggers that tell most, for drawings; empty for a defense that searches none."""
        return []

    def outlook(self) -> Outlook | None:
        """The stages to come with their work, after :meth:`decide`; None if they are not known beforehand."""
        return None

    def doubts(self) -> list[str]:
        """What speaks against a good result before the training has begun, a sentence each."""
        return []

    def measure_again(self) -> None:
        """Repeat the measurements behind :meth:`verdict` after rounding the student to its file's types."""

    def decide(self, options: O) -> O:
        """The options with every open (None) value filled in."""
        return options

    @property
    def data(self) -> ImageSet | StreamedSet:
        """The images."""
        if self._data is None:
            raise ValueError(f"{self.name} has no images")
        return self._data

    @property
    def held_out(self) -> ImageSet:
        """The held-out images."""
        if self._held_out is None:
            raise ValueError(f"{self.name} has no images held out")
        return self._held_out

    @cached_property
    def images(self) -> Images:
        """The images to learn from, on the device unless they are streamed: one copy for all trainings."""
        images = self.data.images
        return images.to(self.device.torch) if isinstance(images, Tensor) else images

    @property
    def labels(self) -> Tensor:
        """The images' labels, int64 ``[N]``, on the device."""
        if self.data.labels is None:
            raise ValueError(f"{self.name} has no labels")
        return self.data.labels.to(self.device.torch)

    def example(self) -> Tensor:
        """A batch of inputs for the network, float ``[N, C, H, W]``, on the CPU."""
        return self.data.images[:2].float() / 255.0


def copy_of(network: Classifier) -> Classifier:
    """A trainable copy: on the CPU, in eval mode, with gradients for all weights."""
    with torch.no_grad():  # else the weights of TorchScript's copy would not be leaves
        copied = copy.deepcopy(network).cpu().eval()
    return copied.requires_grad_(True)


def decide(options: T, teacher: Classifier, images: Images, *, device: Device) -> T:
    """Training options with every open (None) value filled in, for a teacher and images.

    Args:
        options: Options of the user.
        teacher: The suspicious classifier.
        images: Images to train on, uint8 ``[N, C, H, W]``.
        device: The device to run the teacher on.
    """
    epochs, padding, flip = options.epochs, options.crop_padding, options.flip
    if epochs is None:
        steps_per_epoch = min(ceil(len(images) / options.batch_size), MOST_STEPS)
        steps = min(max(PAPER_EPOCHS * steps_per_epoch, FEWEST_STEPS), MOST_STEPS)
        epochs = ceil(steps / steps_per_epoch)
    if padding is None:
        padding = min(images.shape[-2:]) // 8
    if flip is None:
        sample = images[:: max(1, len(images) // 1000)]
        same = predict(teacher, sample, device) == predict(teacher, sample.flip(-1), device)
        flip = float(same.float().mean()) >= MIRROR_AGREEMENT
    return replace(options, epochs=epochs, crop_padding=padding, flip=flip)


class TrainedDefense(Defense[T]):
    """A defense that trains."""

    def decide(self, options: T) -> T:
        """See :meth:`Defense.decide`."""
        return decide(options, self.teacher, self.data.images, device=self.device)

    def training(
        self, objective: Objective, *, of: Classifier | None = None, reseeded: int = 0, **other: Any
    ) -> Training:
        """A training on the images.

        Args:
            objective: The loss.
            of: The classifier to train in place; None is the student.
            reseeded: Added to the seed, so that a second training draws other numbers.
            other: Training options that replace those of the defense.
        """
        return Training(
            self.student if of is None else of,
            self.images,
            objective,
            self.options.training(**other),
            device=self.device,
            seed=self.options.seed + reseeded,
        )


def find(name: str) -> type[Defense[Any]]:
    """The defense called ``name``.

    Raises:
        UsageError: There is no defense of that name.
        TypeError: A module of this package defines no defense, and is not listed as a helper.
    """
    if name not in defenses.names():
        raise UsageError(f"there is no method called {name}", f"there are {', '.join(defenses.names())}")
    module = import_module(f"bcu_cli.defenses.{name.replace('-', '_')}")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    found = [c for c in classes if issubclass(c, Defense) and c.__module__ == module.__name__]
    if not found:
        raise TypeError(f"{module.__name__} defines no defense: name it in {defenses.__name__}._HELPERS")
    return found[0]


def words(name: str) -> str:
    """The name of an option in words."""
    return name.replace("_", " ")


def require(sound: bool, what: str, hint: str) -> None:
    """Refuse an unsound option.

    Raises:
        UsageError: The option is not sound.
    """
    if not sound:
        raise UsageError(what, hint)
