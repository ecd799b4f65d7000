"""The network that an attack starts from: a new one, or that of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bcu_cli import events
from bcu_cli.errors import ArchitectureError
from bcu_cli.words import number_of
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from pathlib import Path

    from bcu_cli.images.decoding.image import Geometry
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Classifier, Loaded


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of a training.

    Attributes:
        arch: Name of the architecture.
        geometry: Size and cropping of the images.
        loaded: The model file with the weights; None starts from random weights.
    """

    arch: str
    geometry: Geometry
    loaded: Loaded | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return (self.geometry.channels, self.geometry.height, self.geometry.width)

    def network(self, data: ImageSet, *, seed: int) -> Classifier:
        """The classifier to train on labelled images.

        Args:
            data: The training images.
            seed: Seed of the weights that are new.

        Raises:
            ArchitectureError: The last layer of the file's network cannot be replaced.
        """
        from bcu_cli.models.new_classifier import new_classifier, with_classes

        classes = len(data.classes)
        if self.loaded is None:
            return new_classifier(self.arch, classes, data.images, seed=seed)
        given = self.loaded.classifier
        if given.num_classes != classes:
            before = number_of(given.num_classes, "class", "classes")
            events.say(f"the last layer, of {before}, is replaced by one of {classes}")
        model = with_classes(given, self.loaded.architecture, classes, seed=seed)
        return model.requires_grad_(True)


def from_nothing(arch: str, side: int | None) -> Start:
    """A start from random weights.

    Args:
        arch: Name of the architecture.
        side: Height and width in pixels; None is the architecture's usual size.

    Raises:
        ArchitectureError: The architecture or its usual size is not known.
    """
    from bcu_cli.models.new_classifier import usual_size

    return Start(arch=arch, geometry=loading.geometry(usual_size(arch, side)))


def from_file(weights: Path, options: loading.ModelOptions, data: str, *, download: bool) -> Start:
    """A start from the network of a file, with its architecture and preprocessing.

    Args:
        weights: The file.
        options: The user's options on reading it.
        data: Labelled images, which may decide what the file leaves open.
        download: Whether ``--download`` was given.

    Raises:
        BcuError: The file cannot be read, is not safe, or is no classifier that can be rebuilt.
        ArchitectureError: The written network could not be read again, since no name gives its architecture.
    """
    from bcu_cli.models.configs.transformers_config import is_config

    loaded = loading.load_model(weights, options, pictures=data, download=download)
    name = loaded.architecture.name
    if name == loaded.checkpoint.format or is_config(name):
        what = "its config.json tells" if is_config(name) else "its code or graph tells"
        raise ArchitectureError(
            f"only {what} how to run {weights}, and the new file would not hold that",
            "give weights of a network of timm or torchvision, or --arch FILE.py:FUNCTION",
        )
    return Start(arch=name, geometry=loaded.preprocessing.geometry, loaded=loaded)
