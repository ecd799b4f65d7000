"""Notices and progress of long work, for whoever listens.

The library never prints. A workflow reports what it notices and how far it is as events, and its caller gives
a listener. The command line draws bars and lines, a notebook draws its own, a program may ignore them.

    with events.listening(print):
        ...
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One line for people.

    Attributes:
        text: The line.
        is_warning: Whether the user should not miss it.
        is_noted: Whether the note of a progress says the same, so that who shows that need not show this.
    """

    text: str
    is_warning: bool = False
    is_noted: bool = False

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.is_warning else self.text


@dataclass(frozen=True, kw_only=True)
class Overall:
    """How far the whole run is, of which a part shows one stage.

    Attributes:
        stage: Number of the stage, from 1.
        stages: Number of all stages, as far as they are known.
        share: Share of the work that is done, in [0, 1].
        seconds_left: Estimated time until the end of all stages, in seconds; None at first.
    """

    stage: int
    stages: int
    share: float
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far one part of the work is.

    Attributes:
        part: A number that tells this part from others with the same title.
        title: What is being done.
        done: Steps done.
        total: Steps in all; None while that is unknown.
        note: Some words on the last step; may be empty.
        ended: Whether the part is over, done or not.
        overall: How far the whole run is; None where only this part is known.
    """

    part: int
    title: str
    done: int = 0
    total: int | None = None
    note: str = ""
    ended: bool = False
    overall: Overall | None = None

    @property
    def heading(self) -> str:
        """The title, after the number of the stage where there are several."""
        whole = self.overall
        return f"stage {whole.stage} of {whole.stages}, {self.title}" if whole else self.title

    @property
    def time_left(self) -> str:
        """The estimated time until the end of all stages, in words; empty where it is unknown."""
        seconds = self.overall.seconds_left if self.overall else None
        return "" if seconds is None else f"{duration(seconds)} left"

    def __str__(self) -> str:
        of = f"/{self.total}" if self.total is not None else ""
        return " ".join(filter(None, (f"{self.heading}: {self.done}{of}", self.note)))


Event: TypeAlias = Notice | Progress
Listener: TypeAlias = "Callable[[Event], object]"


def ignore(event: Event) -> None:
    """The listener of those who gave none."""


_listener: ContextVar[Listener] = ContextVar("listener", default=ignore)
_parts = count()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the events of this thread to a listener while the context lasts.

    Args:
        listener: Called with each event.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def current() -> Listener:
    """The listener of this thread."""
    return _listener.get()


def emit(event: Event) -> None:
    """Report an event."""
    _listener.get()(event)


def to_json(event: Event) -> dict[str, Any]:
    """An event as plain values."""
    return asdict(event)


def from_json(values: dict[str, Any]) -> Event:
    """The event that :func:`to_json` made these values of."""
    if "part" not in values:
        return Notice(**values)
    whole = values.get("overall")
    return Progress(**{**values, "overall": Overall(**whole) if whole else None})


def duration(seconds: float) -> str:
    """A time in words: ``50 s``, ``48 min``, ``5.2 h``."""
    if seconds < 90:
        return f"{round(seconds)} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def say(text: str, *, noted: bool = False) -> None:
    """Report one line for people.

    Args:
        text: The line.
        noted: Whether the note of a progress says the same.
    """
    emit(Notice(text=text, is_noted=noted))


def warn(text: str) -> None:
    """Report one line that the user should not miss."""
    emit(Notice(text=text, is_warning=True))


class Part:
    """One part of the work, whose progress is reported.

    Args:
        title: What is being done.
        overall: Returns how far the whole run is; None where only this part is known.
    """

    def __init__(self, title: str, overall: Callable[[], Overall] | None = None) -> None:
        self._overall = overall
        self._title, self._number = title, next(_parts)
        self._done, self._total, self._note = 0, None, ""
        self._report()

    _total: int | None

    def advance(self, by: int, of: int, note: str = "") -> None:
        """Go on by so many steps of so many; an empty note keeps the last one."""
        self._done, self._total = self._done + by, of
        self._note = note or self._note
        self._report()

    def restart(self, note: str, title: str | None = None) -> None:
        """Begin another piece of the work; the title stays unless another one is given."""
        self._done, self._total, self._note = 0, None, note
        self._title = title or self._title
        self._report()

    def end(self) -> None:
        """Report that the part is over."""
        self._report(ended=True)

    def _report(self, *, ended: bool = False) -> None:
        emit(
            Progress(
                part=self._number,
                title=self._title,
                done=self._done,
                total=self._total,
                note=self._note,
                ended=ended,
                overall=self._overall() if self._overall else None,
            )
        )


@contextmanager
def progress(title: str, overall: Callable[[], Overall] | None = None) -> Iterator[Part]:
    """Report the progress of one part of the work for as long as the context lasts.

    Args:
        title: What is being done.
        overall: Returns how far the whole run is; None where only this part is known.
    """
    part = Part(title, overall)
    try:
        yield part
    finally:
        part.end()
