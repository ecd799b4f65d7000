"""The base class of triggers, their look-up by name, and their files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch

from bcu_cli import triggers
from bcu_cli.checkpoints import Format, read, write
from bcu_cli.errors import TriggerError
from bcu_cli.triggers.fields import Floats, Number, check_tensors, checked_settings

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_NO_TENSORS = "no_tensors"
"""Name of a placeholder tensor: a safetensors file needs one, also for a trigger without tensors."""
_FIELDS = ("settings", "image_shape", "target_class", "num_classes")
_LARGEST_SIDE, _MOST_CLASSES = 8192, 1_000_000


Target = int | Literal["next"]
"""The class that triggered images are classified as: one class (all-to-one), or ``next`` (all-to-all).

``next`` is the class after the true one, and the first class after the last."""


def target_labels(target: Target, labels: Tensor, num_classes: int) -> Tensor:
    """The classes that a backdoor predicts for triggered images.

    Args:
        target: The attack's target.
        labels: The true classes, int64 ``[N]``.
        num_classes: Number of classes.

    Returns:
        int64 ``[N]``.
    """
    return (labels + 1) % num_classes if target == "next" else torch.full_like(labels, target)


class Trigger(ABC):
    """A change to an image that makes a backdoored network predict the target class.

    Subclasses set ``name`` (that of their module) and ``paper``. They are constructed from their settings
    (plain values, which ``settings`` returns) and tensors (which ``tensors`` returns).

    Attributes:
        name: Name of the trigger and of its module.
        paper: The paper that describes it.
        learnt: Whether an attack trains the trigger; then it comes from that attack's file.
        numbers: The allowed values of each setting.
        floats: The allowed shape and values of each tensor.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    learnt: ClassVar[bool] = False
    numbers: ClassVar[dict[str, Number]] = {}
    floats: ClassVar[dict[str, Floats]] = {}

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], *, seed: int = 0) -> Self:  # noqa: ARG003 - for subclasses
        """The trigger with its paper's settings for images of ``shape`` (C, H, W)."""
        return cls()

    @abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Trigger every image.

        Args:
            images: float32 ``[N, C, H, W]`` in [0, 1], before normalisation.

        Returns:
            The triggered images, of the same shape, range and device; ``images`` is not changed.
        """

    def settings(self) -> dict[str, Any]:
        """The settings of this trigger, as plain values that JSON can hold."""
        return {name: getattr(self, name) for name in self.numbers}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of this trigger; empty where settings suffice."""
        return {name: getattr(self, name) for name in self.floats}

    @classmethod
    def restore(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Construct a trigger from the settings and tensors of a saved one; the caller has checked both."""
        return cls(**settings, **tensors)

    @classmethod
    def check_tensors(cls, tensors: dict[str, Tensor], shape: tuple[int, int, int]) -> None:
        """Raise ``TriggerError`` unless these tensors are a trigger's for images of ``shape`` (C, H, W)."""
        check_tensors(cls.name, cls.floats, tensors, shape)

    def apply_to_bytes(self, images: Tensor) -> Tensor:
        """Trigger uint8 images ``[N, C, H, W]``, rounded to 8 bits as a saved image would be."""
        return to_bytes(self.apply(images.float() / 255.0))


def to_bytes(images: Tensor) -> Tensor:
    """Round float images in [0, 1] to uint8, as a saved image would be."""
    return (images * 255.0).round_().clamp_(0, 255).to(torch.uint8)


def find(name: str) -> type[Trigger]:
    """The class of the trigger called ``name``.

    Raises:
        TriggerError: No trigger has that name.
    """
    if name not in triggers.names():
        raise TriggerError(
            f"there is no trigger called {name}", f"there are {', '.join(triggers.names())}, or name a file"
        )
    module = import_module(f"bcu_cli.triggers.{name.replace('-', '_')}")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    found: type[Trigger] = next(
        c for c in classes if issubclass(c, Trigger) and c.__module__ == module.__name__
    )
    return found


def make(
    name: str, shape: tuple[int, int, int], *, seed: int = 0, settings: dict[str, Any] | None = None
) -> Trigger:
    """The trigger called ``name`` for images of ``shape`` (C, H, W).

    Args:
        name: One of ``bcu_cli.triggers.names()``.
        shape: Channels, height and width of the images.
        seed: Seed of a random trigger, such as Blended's pattern.
        settings: Settings that replace the paper's.

    Raises:
        TriggerError: The trigger or a setting is unknown, or the trigger is larger than the images.
    """
    kind = find(name)
    trigger = kind.for_images(shape, seed=seed)
    changed = checked_settings(name, kind.numbers, settings or {})
    trigger = kind.restore(trigger.settings() | changed, trigger.tensors())
    _refuse_misfit(trigger, shape)
    return trigger


@dataclass(frozen=True, kw_only=True)
class Implanted:
    """A trigger that an attack implanted.

    Attributes:
        trigger: The trigger.
        target_class: The class that triggered images are classified as.
        num_classes: Number of classes of the attacked network.
    """

    trigger: Trigger
    target_class: Target
    num_classes: int


def save(implanted: Implanted, path: Path, shape: tuple[int, int, int]) -> str:
    """Write a trigger for images of ``shape`` (C, H, W) as safetensors.

    Returns:
        The SHA-256 of the file.
    """
    trigger = implanted.trigger
    tensors = trigger.tensors() or {_NO_TENSORS: torch.zeros(1)}
    metadata = {
        triggers.KEY: trigger.name,
        "bcu.settings": json.dumps(trigger.settings(), sort_keys=True),
        "bcu.image_shape": json.dumps(shape),
        "bcu.target_class": json.dumps(implanted.target_class),
        "bcu.num_classes": json.dumps(implanted.num_classes),
    }
    return write(path, tensors, format=Format.SAFETENSORS, metadata=metadata)


def load(path: Path, shape: tuple[int, int, int]) -> Implanted:
    """Read a trigger that ``save`` wrote.

    Raises:
        CheckpointError: The file cannot be read.
        TriggerError: The file holds no trigger, or one for images of another shape than (C, H, W).
    """
    checkpoint = read(path)
    if triggers.KEY not in checkpoint.metadata:
        raise TriggerError(f"{path} holds no trigger", "name a .trigger.safetensors that bcu attack wrote")
    kind = find(checkpoint.metadata[triggers.KEY])
    try:
        fields = {key: json.loads(checkpoint.metadata[f"bcu.{key}"]) for key in _FIELDS}
    except (KeyError, ValueError, RecursionError) as error:
        raise _damaged(path, f"its field {error} cannot be read") from error
    made_for = _whole_numbers(path, "image_shape", fields["image_shape"], _LARGEST_SIDE)
    (num_classes,) = _whole_numbers(path, "num_classes", [fields["num_classes"]], _MOST_CLASSES)
    target = fields["target_class"]
    if target != "next" and (type(target) is not int or not 0 <= target < _MOST_CLASSES):
        raise _damaged(path, f"its target_class is {str(target)[:40]}")
    if made_for != shape:
        raise TriggerError(
            f"the trigger in {path} is for images of {_size(made_for)}, the model takes {_size(shape)}",
            "use it on the model that it was made with, or on another model with that input size",
        )
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != _NO_TENSORS}
    try:
        settings = checked_settings(kind.name, kind.numbers, fields["settings"])
        kind.check_tensors(tensors, shape)
    except TriggerError as error:
        raise _damaged(path, error.message) from error
    trigger = kind.restore(settings, tensors)
    _refuse_misfit(trigger, shape)
    return Implanted(trigger=trigger, target_class=target, num_classes=num_classes)


def _whole_numbers(path: Path, name: str, values: Any, most: int) -> tuple[int, ...]:
    """Check a list of whole numbers from 1 to ``most`` that was read from a trigger file."""
    if not isinstance(values, list) or not all(type(one) is int and 1 <= one <= most for one in values):
        raise _damaged(path, f"its {name} is {str(values)[:40]}")
    return tuple(values)


def _damaged(path: Path, why: str) -> TriggerError:
    return TriggerError(f"the trigger in {path} is damaged: {why}", "write the file again")


def _refuse_misfit(trigger: Trigger, shape: tuple[int, int, int]) -> None:
    """Raise ``TriggerError`` unless the trigger can be applied to an image of ``shape``."""
    try:
        trigger.apply(torch.zeros(1, *shape))
    except (RuntimeError, MemoryError, IndexError) as error:
        raise TriggerError(
            f"the trigger {trigger.name} does not fit images of {_size(shape)}",
            "choose a smaller one, or other settings",
        ) from error


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(str(side) for side in shape)
