"""What every detector is: model (and images) to a score for each class, and evidence.

A score says how far a class stands out from the others of the same network. It is no probability: what it is
worth is known only from networks whose truth is known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bcu_cli import detectors
from bcu_cli.evaluation.measures import above_others

if TYPE_CHECKING:
    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device

OnStep = Callable[[int, int], None]
"""Told how many steps are done, of how many."""
FEWEST_CLASSES = 4
"""With fewer there are no others to stand out from."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one detector says of one network.

    Attributes:
        detector: Its name.
        score: How far the most suspicious class (or part) stands out; larger is more suspicious.
        target: That class; None where the detector tells no classes apart.
        per_class: float32 ``[K]``, larger is more suspicious; empty where ``target`` is None.
        evidence: Plain values for people: what was found, and on how many images it works.
        pictures: float ``[C, H, W]`` in [0, 1] by their names: the reversed trigger.
    """

    detector: str
    score: float
    target: int | None
    per_class: Tensor
    evidence: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network under suspicion, and what there is to look at it with.

    Attributes:
        model: In evaluation mode, on the device.
        images: uint8 ``[N, C, H, W]`` like those that the network was made for, without labels; None where
            there are none.
        device: Where, and in which precision.
        seed: Decides everything that is drawn.
        on_step: Told of the progress.
    """

    model: Classifier
    images: Tensor | None
    device: Device
    seed: int = 0
    on_step: OnStep | None = None

    def divided(self, most: int) -> tuple[Tensor, Tensor]:
        """At most so many images to learn on and as many others to judge by, as floats in [0, 1].

        Raises:
            ValueError: There are no images.
        """
        drawn = self.drawn(2 * most)
        return drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]

    def drawn(self, most: int) -> Tensor:
        """At most so many of the images, in random order, as floats in [0, 1] on the device.

        Raises:
            ValueError: There are no images.
        """
        if self.images is None:
            raise ValueError("this detector needs images")
        order = torch.randperm(len(self.images), generator=self.generator())[:most]
        return self.images[order].to(self.device.torch).float() / 255.0

    def generator(self) -> torch.Generator:
        """A generator of random numbers on the CPU, the same each time."""
        return torch.Generator().manual_seed(self.seed)

    def report(self, done: int, of: int) -> None:
        """Tell of the progress."""
        if self.on_step:
            self.on_step(done, of)


class Detector(ABC):
    """One way of looking for a backdoor; its options are its fields.

    Subclasses set ``name`` (that of their module), ``paper``, and whether it ``needs_images``.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_images: ClassVar[bool]

    @abstractmethod
    def scan(self, subject: Subject) -> Scores:
        """Look at a network, which is left as it was.

        Raises:
            ValueError: It needs images and there are none.
        """


def find(name: str) -> type[Detector]:
    """The detector called ``name``.

    Raises:
        KeyError: There is none.
    """
    if name not in detectors.names():
        raise KeyError(name)
    module = import_module(f"bcu_cli.detectors.{name}")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    found: type[Detector] = next(
        c for c in classes if issubclass(c, Detector) and c.__module__ == module.__name__
    )
    return found


def stands_out(per_class: Tensor) -> tuple[float, int]:
    """How far the largest value lies above the others' median, and where it is.

    Args:
        per_class: float ``[K]``.
    """
    index = int(per_class.argmax())
    return float(above_others(per_class)[index]), index
