"""The streams of the process, whatever they lead to: a full disk, a reader that has gone, nothing at all."""

from __future__ import annotations

import io
import os

TYPE_CHECKING = False  # as type checkers know it: importing typing takes time
if TYPE_CHECKING:
    from typing import TextIO


class Talk(io.TextIOWrapper):
    """The stream of talk, on which nothing depends: what cannot be written there is lost, no more.

    Args:
        stream: The process's own stderr; None where it was closed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        buffer = stream.buffer if stream else _nowhere()
        encoding = stream.encoding if stream else "utf-8"
        super().__init__(buffer, encoding, errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        """Write text; returns its length, also where it is lost."""
        try:
            return super().write(text)
        except OSError:
            self._lead_nowhere()
            return len(text)

    def flush(self) -> None:
        """Write what waits, or lose it."""
        try:
            super().flush()
        except OSError:
            self._lead_nowhere()

    def _lead_nowhere(self) -> None:
        """Have the stream lead nowhere from now on, so that what still waits troubles nobody."""
        with _nowhere() as nowhere:
            os.dup2(nowhere.fileno(), self.fileno())


def _nowhere() -> io.BufferedWriter:
    return open(os.devnull, "wb")  # noqa: PTH123 - pathlib is not imported yet


def occupy_standard_streams() -> None:
    """Have the numbers of streams that were closed lead nowhere.

    A file that is opened gets the lowest number that is free: libraries would print into a model.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def talking(stream: TextIO | None) -> TextIO:
    """The stream of talk over the process's own stderr; it stays where it is one already."""
    return stream if isinstance(stream, Talk) else Talk(stream)


def writable(stream: TextIO | None) -> TextIO:
    """A stream that any text can be written to: one that was closed leads nowhere."""
    if stream is None:
        return io.TextIOWrapper(_nowhere(), "utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
