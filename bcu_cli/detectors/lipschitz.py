"""Channel Lipschitz outliers: channels that respond to input changes far more than their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bcu_cli.detectors.base import Detector, Scores, Subject
from bcu_cli.models.channels import convolutions_with_norms, lipschitz_bounds

_FEWEST_CHANNELS = 8
"""Fewest channels of a layer whose channels are compared."""


@dataclass(frozen=True, kw_only=True)
class LipschitzOutliers(Detector):
    """The highest bound of a channel, in standard deviations above the mean of its convolution.

    A channel's bound is the spectral norm of its kernel times the scale of the BatchNorm behind it (eq. 5 and
    9 of the paper). The kernel is taken as a matrix of input channels by taps. That BatchNorm is found by the
    data that flows through the network, not by names. The detector does not distinguish classes.
    """

    name: ClassVar[str] = "lipschitz"
    paper: ClassVar[str] = "Zheng et al., CLP, ECCV 2022, arXiv:2208.03111"
    needs_images: ClassVar[bool] = False

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        model = subject.model
        example = torch.zeros(1, *model.preprocessing.input_size, device=subject.device.torch)
        pairs = convolutions_with_norms(model, example)
        names = {module: name for name, module in model.network.named_modules()}
        best, evidence = 0.0, dict[str, Any]()
        for done, (convolution, norm) in enumerate(pairs, start=1):
            bounds = lipschitz_bounds(convolution, norm)
            if len(bounds) < _FEWEST_CHANNELS:
                continue
            distance = float((bounds.max() - bounds.mean()) / (bounds.std() + 1e-12))
            if distance > best:
                best = distance
                evidence = {"layer": names[convolution], "channel": int(bounds.argmax())}
                evidence["of_median"] = float(bounds.max() / (bounds.median() + 1e-12))
            subject.report(done, len(pairs))
        return Scores(
            detector=self.name, score=best, target=None, per_class=torch.empty(0), evidence=evidence
        )
