"""Universal perturbations: one small change of all pixels that leads many images to one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bcu_cli.detectors.universal import UniversalChange

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.detectors.base import Subject


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation(UniversalChange):
    """For each class the change within an L∞ ball, of a radius on a scale of 0 to 1.

    After Moosavi-Dezfooli et al. 2017, one change for each class. A backdoored network has such a shortcut to
    its target and is led to it by a smaller change than to other classes.
    """

    name: ClassVar[str] = "perturbation"
    paper: ClassVar[str] = "Moosavi-Dezfooli et al., Universal adversarial perturbations, CVPR 2017"

    radius: float = 10 / 255
    batch: int = 32

    def shape(self, subject: Subject) -> tuple[int, ...]:
        """That of an image."""
        return subject.model.preprocessing.input_size

    def under(self, images: Tensor, changes: Tensor) -> Tensor:
        """Add them."""
        return (images[None] + changes[:, None]).clamp(0.0, 1.0).flatten(0, 1)

    def drawn(self, image: Tensor, change: Tensor) -> dict[str, Tensor]:  # noqa: ARG002 - it is seen alone
        """The change, with grey for none."""
        return {"perturbation": (0.5 + change[0] / (2.0 * self.radius)).clamp(0.0, 1.0).cpu()}
