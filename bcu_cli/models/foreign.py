"""The time that a network of a file's own code or graph may take for a batch, by what its first one took."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS_OF_THE_FIRST = 60.0
"""Time for the first batch, which is of one image or two."""
_LEAST_SECONDS, _GROWTH = 20.0, 20.0
"""A later batch may take this time, and so many times as much for each image as the first one."""


class Allowance:
    """Keeps count of the time of one network; the supervising process ends bcu where it takes too long.

    Args:
        file: How messages call the file.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._seconds_of_an_image: float | None = None

    @contextmanager
    def batch(self, images: int) -> Iterator[None]:
        """Let the network answer a batch within its time.

        Args:
            images: How many there are.
        """
        limits.report_foreign_code()
        first = self._seconds_of_an_image
        seconds = _SECONDS_OF_THE_FIRST if first is None else _LEAST_SECONDS + _GROWTH * first * images
        started = time.perf_counter()
        with limits.time_limit(seconds, f"running what {self._file} computes"):
            yield
        if first is None:
            self._seconds_of_an_image = (time.perf_counter() - started) / images


class ForeignNetwork(nn.Module):
    """A network that computes what a file's own code or graph says, each batch within its time.

    Attributes:
        file: How messages call the file.
        group: How many images it takes at a time; None where it answers any number of them.
    """

    file: str = "the file"
    group: int | None = None

    def __call__(self, *inputs: Any) -> Any:
        """Images ``[N, C, H, W]`` to whatever the file makes of them."""
        images = inputs[0] if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() else None
        number = 1 if images is None else max(1, len(images))
        with self.__dict__.setdefault("_allowance", Allowance(self.file)).batch(number):
            if self.group is None or images is None or number == self.group:
                return super().__call__(*inputs)
            return self._in_groups(images, self.group)

    def _in_groups(self, images: Tensor, group: int) -> Tensor:
        """The answers to groups of one size, one after the other; the last image fills up the last group."""
        answers: list[Tensor] = []
        for start in range(0, len(images), group):
            part = images[start : start + group]
            missing = group - len(part)
            whole = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            answer: Any = super().__call__(whole)
            answer = getattr(answer, "logits", answer[0]) if isinstance(answer, tuple) else answer
            answers.append(answer[: len(part)])
        return torch.cat(answers)
