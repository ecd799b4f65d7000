"""The base class of detectors, which map a model (and images) to a score for each class, and evidence.

A score says how far a class stands out from the other classes of the same network. It is not a probability;
its meaning comes from calibration on networks that are known to be clean or backdoored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from math import ceil, prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from bcu_cli import detectors
from bcu_cli.evaluation.measures import above_others

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device

OnStep = Callable[[int, int], None]
"""Called with the number of steps done and the number of all steps."""
EXAMPLES = 3
"""Most given images that a detector shows its trigger on."""
MOST_VALUES = 64 * 32 * 3 * 32 * 32
"""Most values of the images in one pass: those of 2,048 images of 3x32x32, or of 41 of 3x224x224."""
LARGE = 64 * 64
"""Most pixels of an image that detectors search with all of their steps and images."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Result of one detector on one network.

    Attributes:
        detector: Name of the detector.
        score: How far the most suspicious class (or layer) stands out; larger is more suspicious.
        target: The most suspicious class; None where the detector does not distinguish classes.
        per_class: Value of each class, float32 ``[K]``, larger is more suspicious; NaN for a class that was
            not searched; empty where ``target`` is None.
        evidence: Plain values for people: what was found, and on how many images it works.
        pictures: Images of the reversed trigger by name, float ``[C, H, W]`` in [0, 1].
        examples: Given images before and after the reversed trigger, float ``[N, C, H, W]`` in [0, 1] with
            N up to ``EXAMPLES``. None for a detector whose trigger changes no given images.
        searched: The classes that have a value; None for all.
    """

    detector: str
    score: float
    target: int | None
    per_class: Tensor
    evidence: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    examples: tuple[Tensor, Tensor] | None = None
    searched: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A suspicious network, and the images and settings to scan it with.

    Attributes:
        model: The network, in evaluation mode on the device.
        images: Unlabeled images like the training data, uint8 ``[N, C, H, W]``; None where there are none.
        device: Device and precision.
        seed: Seed of all random draws.
        on_step: Called with the progress; may be None.
        classes: Classes that a detector which ``searches`` looks at, in ascending order; None for all.
    """

    model: Classifier
    images: Tensor | None
    device: Device
    seed: int = 0
    on_step: OnStep | None = None
    classes: tuple[int, ...] | None = None

    @property
    def searched(self) -> tuple[int, ...]:
        """The classes that a detector which ``searches`` looks at."""
        return tuple(range(self.model.num_classes)) if self.classes is None else self.classes

    @property
    def large(self) -> bool:
        """Whether the images are so large that fewer steps and images have to do."""
        return prod(self.model.preprocessing.input_size[1:]) > LARGE

    def in_parts(self, images: int) -> list[Subject]:
        """The same subject in parts of its classes, each of which fits into memory; progress is of the whole.

        Args:
            images: Images of each class in one pass.
        """
        classes = self.searched
        fitting = max(1, MOST_VALUES // (images * prod(self.model.preprocessing.input_size)))
        count = ceil(len(classes) / fitting)
        parts = torch.tensor(classes).tensor_split(count)

        def report(number: int) -> OnStep:
            return lambda done, of: self.report(number * of + done, count * of)

        return [
            replace(self, classes=tuple(part.tolist()), on_step=report(number))
            for number, part in enumerate(parts)
        ]

    def of_all(self, values: Tensor) -> Tensor:
        """Values ``[S]`` of the searched classes as values of all classes, ``[K]``; NaN for the others."""
        if self.classes is None:
            return values
        whole = torch.full((self.model.num_classes,), float("nan"))
        whole[list(self.classes)] = values
        return whole

    def divided(self, most: int) -> tuple[Tensor, Tensor]:
        """At most ``most`` images to optimise on and as many others to measure on, float in [0, 1].

        Raises:
            ValueError: There are no images.
        """
        drawn = self.drawn(2 * most)
        return drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]

    def drawn(self, most: int) -> Tensor:
        """At most ``most`` random images, float in [0, 1] on the device.

        Raises:
            ValueError: There are no images.
        """
        if self.images is None:
            raise ValueError("this detector needs images")
        order = torch.randperm(len(self.images), generator=self.generator())[:most]
        return self.images[order].to(self.device.torch).float() / 255.0

    def generator(self) -> torch.Generator:
        """A new random generator on the CPU, seeded with ``seed``."""
        return torch.Generator().manual_seed(self.seed)

    def report(self, done: int, of: int) -> None:
        """Report the progress."""
        if self.on_step:
            self.on_step(done, of)


@dataclass(frozen=True, kw_only=True)
class Detector(ABC):
    """A method of detecting backdoors; its fields are its options.

    Subclasses set ``name`` (that of their module), ``paper``, and whether it ``needs_images``.

    Attributes:
        searches: Whether it searches something for each class, so that its work grows with the classes.
        at_large_size: Options that take other values for images of more than ``LARGE`` pixels.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_images: ClassVar[bool]
    searches: ClassVar[bool] = False
    at_large_size: ClassVar[Mapping[str, float]] = {}

    def sized(self, subject: Subject) -> Self:
        """The detector with the options for the size of the subject's images."""
        return replace(self, **self.at_large_size) if subject.large else self

    def passes(self, subject: Subject) -> float:  # noqa: ARG002 - for subclasses
        """Passes of images through the network, as ``training.forecast`` counts them; 0 if there are few."""
        return 0.0

    @abstractmethod
    def scan(self, subject: Subject) -> Scores:
        """Scan a network, which is not changed.

        Raises:
            ValueError: The detector needs images, and there are none.
        """


def find(name: str) -> type[Detector]:
    """The detector called ``name``.

    Raises:
        KeyError: There is no detector of that name.
    """
    if name not in detectors.names():
        raise KeyError(name)
    module = import_module(f"bcu_cli.detectors.{name}")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    found: type[Detector] = next(
        c for c in classes if issubclass(c, Detector) and c.__module__ == module.__name__
    )
    return found


def outlier(values: Tensor) -> tuple[float, int]:
    """The gap between the largest value and the median of the others, and the index of that value.

    Args:
        values: Values of the classes to compare, float ``[S]``.
    """
    index = int(values.argmax())
    return float(above_others(values)[index]), index
