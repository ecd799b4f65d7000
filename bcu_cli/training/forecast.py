"""The time that a run of several stages will take, from their work and the first timed steps.

The work of a stage is counted in passes: one image through the network. A backward pass counts as one more if
it reaches the images alone, and as two more if it reaches the weights too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bcu_cli import events

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bcu_cli.training.devices import Device

FORWARD, TO_IMAGES, TO_WEIGHTS = 1.0, 2.0, 3.0
"""Passes of an image that goes forward, and back to the images or to the weights."""
_TIMED_STEPS = 3
"""Steps that are timed before an estimate; the first step of all is not, since it also warms up."""
_WORTH_SAYING, _LONG = 60.0, 3600.0
"""Seconds of a run from which its time is reported, and from which that is a warning."""


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage that a run will come to.

    Attributes:
        title: Its title.
        passes: Passes in all of its steps.
        after: Passes between its last step and the next stage.
        sure: Whether every run comes to it; one that is not sure counts once it has begun.
    """

    title: str
    passes: float
    after: float = 0.0
    sure: bool = True


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The stages of a run, as far as they are known before it.

    Attributes:
        stages: Its stages in order.
        shorter: Passes of the whole run with another option, by that option.
        advice: What else would shorten the run, as the end of a sentence.
    """

    stages: tuple[PlannedStage, ...]
    shorter: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""

    @property
    def passes(self) -> float:
        """Passes of the stages that are sure."""
        return sum(stage.passes + stage.after for stage in self.stages if stage.sure)


class Forecast:
    """The time that is left of a run.

    Args:
        outlook: What the run will do.
        where: The device, in words.
        clock: Returns the time in seconds.
        wait: Waits until the device has done its work; else the time to start it is taken for its time.
    """

    def __init__(
        self,
        outlook: Outlook,
        where: str,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._outlook = outlook
        self._where = where
        self._clock = clock
        self._wait = wait
        self._ahead = list(outlook.stages)
        self._current: PlannedStage | None = None
        self._finished, self._share, self._number = 0.0, 0.0, 0
        self._start: tuple[float, float] | None = None
        self._steps, self._said, self._rate = 0, False, 0.0

    def begin(self, title: str, share: float = 0.0) -> None:
        """Begin a stage; a planned one that was left out before it counts no longer.

        Args:
            title: Title of the stage.
            share: Share of it that an interrupted run has done, in [0, 1].
        """
        if self._current:
            self._finished += self._current.passes + self._current.after
        places = [place for place, stage in enumerate(self._ahead) if stage.title == title]
        if places:
            self._current = self._ahead[places[0]]
            self._ahead = self._ahead[places[0] + 1 :]
        else:
            known = [stage.passes for stage in self._outlook.stages]
            self._current = PlannedStage(title=title, passes=sum(known) / max(1, len(known)))
        self._number += 1
        self._share = share

    def advance(self, share: float) -> None:
        """Set the done share of the stage in [0, 1] after a step; reports the time of the run once."""
        self._share = share
        if not self._said:
            self._wait()
        now, done = self._clock(), self._done
        if self._start is None:
            self._start = (now, done)
            return
        self._steps += 1
        if self._steps < _TIMED_STEPS or done <= self._start[1]:
            return
        self._rate = (now - self._start[0]) / (done - self._start[1])
        if not self._said:
            self._said = True
            self._announce()

    def overall(self) -> events.Overall:
        """How far the run is."""
        ahead = sum(stage.sure for stage in self._ahead)
        total = self._finished + self._of_current + self._of_ahead
        left = self._rate * (total - self._done) if self._rate else None
        share = min(1.0, self._done / total) if total else 0.0
        return events.Overall(stage=self._number, stages=self._number + ahead, share=share, seconds_left=left)

    @property
    def _of_current(self) -> float:
        return self._current.passes + self._current.after if self._current else 0.0

    @property
    def _of_ahead(self) -> float:
        return sum(stage.passes + stage.after for stage in self._ahead if stage.sure)

    @property
    def _done(self) -> float:
        return self._finished + self._share * (self._current.passes if self._current else 0.0)

    def _announce(self) -> None:
        """Report the time of the rest of the run, and of the whole run with other options."""
        seconds = self.overall().seconds_left or 0.0
        if seconds < _WORTH_SAYING:
            return
        parts = [f"about {events.duration(seconds)} on {self._where}"]
        for option, passes in self._outlook.shorter.items():
            parts.append(f"about {events.duration(self._rate * passes)} with {option}")
        if seconds < _LONG:
            events.say("; ".join(parts))
        else:
            events.warn("; ".join([*parts, *([self._outlook.advice] if self._outlook.advice else [])]))


def place(device: Device) -> str:
    """A device in words."""
    return "this CPU" if device.torch.type == "cpu" else device.name
