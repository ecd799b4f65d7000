"""The last layer: the row of a backdoor's target often has a far larger mean than those of other classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bcu_cli.detectors.base import Detector, Scores, Subject
from bcu_cli.models.last_layer import find_last_layer

if TYPE_CHECKING:
    from bcu_cli.models.last_layer import LastLayer

FEWEST_ROWS = 50
"""Fewest classes of a network whose last layer counts in the verdict; among few rows outliers are common."""
MOST_DEVIATIONS = 7.0
"""Robust deviations of the row mean from which a class is suspicious.

Clean networks of 1,000 classes reached 4.6 at most (``docs/scan.md``).
"""
_LEAST_SPREAD = 1e-4
"""Least robust deviation of the row means, as a share of their largest; below it rows cannot be compared."""
_CONSISTENT = 1.4826
"""Factor from the median absolute deviation to the standard deviation of a normal distribution."""


@dataclass(frozen=True, kw_only=True)
class LastLayerOutliers(Detector):
    """The mean weight of each class's row in the last layer, in robust deviations from the other rows.

    The detector is bcu's. To answer the target for a trigger whatever else is in the image, training raises
    many weights of the target's row. The layer is found by the values that it computes, not by names. Norm,
    maximum and bias of the rows are evidence for people; on clean networks they have outliers, too.
    """

    name: ClassVar[str] = "last_layer"
    paper: ClassVar[str] = "own"
    needs_images: ClassVar[bool] = False

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        layer = find_last_layer(subject.model)
        subject.report(1, 1)
        if layer is None:
            return self._nothing("no layer whose outputs are the logits")
        means = deviations(layer.weight.mean(1))
        if means is None:
            return self._nothing("its rows hardly differ")
        target = int(means.argmax())
        return Scores(
            detector=self.name,
            score=float(means[target]),
            target=target,
            per_class=means,
            evidence={"inputs": layer.weight.shape[1], **_others(layer, target)},
        )

    def _nothing(self, why: str) -> Scores:
        """Scores without classes, and why there are none."""
        evidence: dict[str, Any] = {"layer": why}
        return Scores(detector=self.name, score=0.0, target=None, per_class=torch.empty(0), evidence=evidence)


def _others(layer: LastLayer, target: int) -> dict[str, float]:
    """Deviations of norm, maximum and bias of a class's row, where they can be compared."""
    values = {"norm": layer.weight.norm(dim=1), "maximum": layer.weight.amax(1), "bias": layer.bias}
    compared = {name: deviations(value) for name, value in values.items() if value is not None}
    return {name: float(value[target]) for name, value in compared.items() if value is not None}


def deviations(values: Tensor) -> Tensor | None:
    """Distances of values ``[K]`` from their median in robust standard deviations; None if most are equal."""
    distances = values - values.median()
    spread = _CONSISTENT * float(distances.abs().median())
    if spread <= _LEAST_SPREAD * float(values.abs().max()):
        return None
    return distances / spread
