"""MM-BD: the target class of a backdoor can reach a far larger margin than others; needs no images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from bcu_cli.detectors.base import Detector, Scores, Subject, outlier
from bcu_cli.detectors.input_optimisation import logits, margin
from bcu_cli.training.forecast import TO_IMAGES
from bcu_cli.training.inference import frozen
from bcu_cli.training.optimizers import Adam

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SMALLEST_MARGIN = 0.01
"""Floor of the margins, since a class that is never predicted has a negative one."""


@dataclass(frozen=True, kw_only=True)
class MaximumMargin(Detector):
    """The logarithm of the largest margin that an input in [0, 1] reaches, for each class.

    Deviation: the paper has 30 starts and 300 steps of SGD at 0.01; here there are fewer of both, by Adam,
    which scales the step of each pixel.

    Args:
        starts: Random inputs for each class.
        steps: Steps for each input.
        learning_rate: Learning rate of Adam, in units of the pixels' range.
    """

    name: ClassVar[str] = "mmbd"
    paper: ClassVar[str] = "Wang et al., MM-BD, IEEE S&P 2024, arXiv:2205.06900"
    needs_images: ClassVar[bool] = False
    searches: ClassVar[bool] = True
    at_large_size: ClassVar[Mapping[str, float]] = {"starts": 2, "steps": 40}

    starts: int = 8
    steps: int = 100
    learning_rate: float = 0.05

    def passes(self, subject: Subject) -> float:
        """See :meth:`Detector.passes`."""
        return TO_IMAGES * self.steps * self.starts * len(subject.searched)

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        parts = [self._furthest(part) for part in subject.in_parts(self.starts)]
        margins, inputs = (torch.cat(each) for each in zip(*parts, strict=True))
        values = margins.clamp(min=SMALLEST_MARGIN).log()
        score, place = outlier(values)
        return Scores(
            detector=self.name,
            score=score,
            target=subject.searched[place],
            per_class=subject.of_all(values),
            evidence={"margin": float(margins[place]), "median": float(margins.median())},
            pictures={"input": inputs[place]},
            searched=subject.classes,
        )

    def _furthest(self, subject: Subject) -> tuple[Tensor, Tensor]:
        """The largest margin of each class, ``[S]``, and the input that reaches it, ``[S, C, H, W]``."""
        model, device = subject.model, subject.device
        classes = torch.tensor(subject.searched).repeat_interleave(self.starts).to(device.torch)
        shape = (len(classes), *model.preprocessing.input_size)
        inputs = torch.rand(shape, generator=subject.generator()).to(device.torch)
        inputs.requires_grad_(True)
        optimizer = Adam([inputs], lr=self.learning_rate)
        with frozen(model):
            for step in range(self.steps):
                margin(logits(model, inputs, device), classes).sum().neg().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    inputs.clamp_(0.0, 1.0)
                subject.report(step + 1, self.steps)
            with torch.no_grad():
                reached = margin(model(inputs).float(), classes).view(-1, self.starts)
        margins, starts = reached.max(1)
        best = inputs.detach().view(-1, self.starts, *shape[1:])[torch.arange(len(starts)), starts]
        return margins.cpu(), best.cpu()
