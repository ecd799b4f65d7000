"""A network that runs the code or graph of a file, with a time limit for each batch."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli import limits
from bcu_cli.models.outputs import logits_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS_OF_THE_FIRST = 60.0
"""Time limit of the first batch, of one or two images, in seconds."""
_LEAST_SECONDS, _GROWTH = 20.0, 20.0
"""Time limits of a later batch: seconds, and a factor of the first batch's time per image."""


class TimeAllowance:
    """Time limits of one network; the supervising process ends bcu if they are exceeded.

    Args:
        file: Name of the file in messages.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._seconds_of_an_image: float | None = None

    @contextmanager
    def batch(self, images: int) -> Iterator[None]:
        """Limit the time of a batch while the context lasts.

        Args:
            images: Number of images in the batch.
        """
        limits.report_foreign_code()
        first = self._seconds_of_an_image
        seconds = _SECONDS_OF_THE_FIRST if first is None else _LEAST_SECONDS + _GROWTH * first * images
        started = time.perf_counter()
        with limits.time_limit(seconds, f"running what {self._file} computes"):
            yield
        if first is None:
            self._seconds_of_an_image = (time.perf_counter() - started) / images


class EmbeddedNetwork(nn.Module):
    """A network that runs the code or graph of a file, each batch within a time limit.

    Attributes:
        file: Name of the file in messages.
        group: Number of images that the network takes at a time; None for any number.
    """

    file: str = "the file"
    group: int | None = None

    def __call__(self, *inputs: Any) -> Any:
        """Map images ``[N, C, H, W]`` to the output of the file's code or graph."""
        images = inputs[0] if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() else None
        number = 1 if images is None else max(1, len(images))
        with self.__dict__.setdefault("_allowance", TimeAllowance(self.file)).batch(number):
            if self.group is None or images is None or number == self.group:
                return super().__call__(*inputs)
            return self._in_groups(images, self.group)

    def _in_groups(self, images: Tensor, group: int) -> Tensor:
        """Run the images in groups of one size; the last group is padded with the last image."""
        answers: list[Tensor] = []
        for start in range(0, len(images), group):
            part = images[start : start + group]
            missing = group - len(part)
            whole = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            answer, _ = logits_of(super().__call__(whole), group, 0, self.file)
            answers.append(answer[: len(part)])
        return torch.cat(answers)
