"""Universal perturbations: for each class, one small perturbation that many images are misclassified with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bcu_cli.detectors.universal import UniversalChange
from bcu_cli.evaluation.adversary import perturbation, perturbation_shape

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.detectors.base import Subject


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation(UniversalChange):
    """A perturbation for each class within an L∞ ball; the radius is on a scale of 0 to 1.

    This follows Moosavi-Dezfooli et al. 2017, with one perturbation for each class. A backdoored network
    needs a smaller perturbation for its target than for other classes.
    """

    name: ClassVar[str] = "perturbation"
    paper: ClassVar[str] = "Moosavi-Dezfooli et al., Universal adversarial perturbations, CVPR 2017"

    radius: float = 10 / 255
    batch: int = 32

    def shape(self, subject: Subject) -> tuple[int, ...]:
        """The shape of a perturbation's parameters, whose number does not grow with large images."""
        channels, height, width = subject.model.preprocessing.input_size
        return perturbation_shape(channels, (height, width))

    def apply(self, images: Tensor, changes: Tensor) -> Tensor:
        """Add the perturbations to the images."""
        added = perturbation(changes, (images.shape[2], images.shape[3]), self.radius)
        return (images[None] + added[:, None]).clamp(0.0, 1.0).flatten(0, 1)

    def pictures(self, image: Tensor, change: Tensor) -> dict[str, Tensor]:
        """The perturbation as an image, in which grey is zero."""
        shown = perturbation(change, (image.shape[2], image.shape[3]), self.radius)[0]
        return {"perturbation": (0.5 + shown / (2.0 * self.radius)).clamp(0.0, 1.0).cpu()}
