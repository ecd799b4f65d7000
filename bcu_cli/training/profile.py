"""Timing of the parts of a run for ``--profile``; without it, spans cost nothing.

The time of a span excludes the spans inside it, so that all of them add up to the total. On a GPU each span
synchronises with the device at both ends, so times are correct but the run is slower. Imports no torch.

It is kept by hand because ``torch.profiler`` times operators and keeps an event for each in memory. These
spans also cover work outside of operators, such as start-up, decoding and writing.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from bcu_cli import STARTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from bcu_cli.training.devices import Device

START_UP = "start-up"
READING = "reading the model"
DECODING = "decoding"
EVALUATION = "evaluation"
BATCH = "batch and views"
TEACHER = "teacher forward"
STUDENT = "student forward"
LOSS = "loss"
BACKWARD = "backward"
OPTIMIZER = "optimiser"
WRITING = "writing"
MEASURING = "measuring the speed"
OTHER = "other"
SPANS = (
    START_UP,
    READING,
    DECODING,
    EVALUATION,
    BATCH,
    TEACHER,
    STUDENT,
    LOSS,
    BACKWARD,
    OPTIMIZER,
    WRITING,
    MEASURING,
    OTHER,
)


class Profile:
    """Seconds by span, since Python began to import bcu.

    Args:
        device: The device to synchronise with.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._last = time.perf_counter()
        self._seconds = dict.fromkeys(SPANS, 0.0) | {START_UP: self._last - STARTED}
        self._open = [OTHER]
        self._first_step: float | None = None
        self._networks: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._entered: list[bool] = []

    def enter(self, name: str) -> None:
        """Begin a span inside the current one."""
        self._book()
        if name == BATCH and self._first_step is None:
            self._first_step = self._last - STARTED
        self._open.append(name)

    def leave(self) -> None:
        """End the innermost span."""
        self._book()
        self._open.pop()

    def name(self, network: nn.Module, name: str) -> None:
        """Time a network's forward passes inside a loss as span ``name``."""
        self._networks[network] = name

    def before_forward(self, module: nn.Module, *_: Any) -> None:
        """Forward pre-hook of every module."""
        if (name := self._networks.get(module)) is None:
            return
        self._entered.append(self._open[-1] == LOSS)
        if self._entered[-1]:
            self.enter(name)

    def after_forward(self, module: nn.Module, *_: Any) -> None:
        """Forward hook of every module."""
        if module in self._networks and self._entered.pop():
            self.leave()

    def as_json(self, stages: Sequence[dict[str, Any]], convolution: float) -> dict[str, Any]:
        """The profile for a report.

        Args:
            stages: The trainings, as the report has them.
            convolution: Peak speed of the device in convolutions, in operations a second.
        """
        self._book()
        seconds = {name: round(value, 3) for name, value in self._seconds.items()}
        report: dict[str, Any] = {"seconds": seconds | {"total": round(sum(self._seconds.values()), 3)}}
        if not stages or self._first_step is None:
            return report
        operations = sum(stage["images"] * stage["flops_per_image"] for stage in stages)
        reached = operations / max(1e-9, sum(stage["seconds"] for stage in stages))
        peak = {"matrix_product": stages[0]["peak_flops_per_second"], "convolution": convolution}
        return report | {
            "seconds_to_first_step": round(self._first_step, 3),
            "flops_per_second": round(reached),
            "peak_flops_per_second": {kind: round(value) for kind, value in peak.items()},
            "share_of_peak": {kind: round(reached / value, 4) for kind, value in peak.items()},
        }

    def _book(self) -> None:
        self._device.wait()
        now = time.perf_counter()
        self._seconds[self._open[-1]] += now - self._last
        self._last = now


_running: Profile | None = None


@contextmanager
def profiling(device: Device) -> Iterator[Profile]:
    """Time the spans of this block."""
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    global _running  # spans are opened all over the code
    profile = _running = Profile(device)
    hooks = (
        register_module_forward_pre_hook(profile.before_forward),
        register_module_forward_hook(profile.after_forward, always_call=True),
    )
    try:
        yield profile
    finally:
        _running = None
        for hook in hooks:
            hook.remove()


@contextmanager
def span(name: str) -> Iterator[None]:
    """Time a part of the run, one of ``SPANS``, as a context or decorator; does nothing without a profile."""
    profile = _running
    if profile is None:
        yield
        return
    profile.enter(name)
    try:
        yield
    finally:
        profile.leave()


def watch(network: nn.Module, name: str) -> None:
    """Time a network's forward passes inside ``LOSS`` as a separate span."""
    if _running:
        _running.name(network, name)
