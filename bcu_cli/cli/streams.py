"""Robust standard streams, also with a full disk, a closed pipe, or a closed stream."""

from __future__ import annotations

import io
import os

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import TextIO


class MessageStream(io.TextIOWrapper):
    """A stream for messages; text that cannot be written is dropped without an error.

    Args:
        stream: stderr of the process; None where it was closed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        buffer = stream.buffer if stream else _null_device()
        encoding = stream.encoding if stream else "utf-8"
        super().__init__(buffer, encoding, errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        """Write text, and return its length even if the text is dropped."""
        try:
            return super().write(text)
        except OSError:
            self._redirect_to_null()
            return len(text)

    def flush(self) -> None:
        """Flush the buffer, or drop it."""
        try:
            super().flush()
        except OSError:
            self._redirect_to_null()

    def _redirect_to_null(self) -> None:
        """Redirect the stream to the null device, so that buffered text raises no further error."""
        with _null_device() as null:
            os.dup2(null.fileno(), self.fileno())


def _null_device() -> io.BufferedWriter:
    return open(os.devnull, "wb")  # noqa: PTH123 - pathlib is not imported yet


def occupy_standard_streams() -> None:
    """Open the null device for standard streams that are closed.

    Otherwise a file that is opened later could get the number of stdout, and libraries would print into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def message_stream(stream: TextIO | None) -> TextIO:
    """Wrap stderr of the process in a :class:`MessageStream`, unless it is one already."""
    return stream if isinstance(stream, MessageStream) else MessageStream(stream)


def writable(stream: TextIO | None) -> TextIO:
    """A stream that accepts any text; a closed stream becomes the null device."""
    if stream is None:
        return io.TextIOWrapper(_null_device(), "utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
