"""The command ``bcu``, also as ``python -m bcu_cli``.

Nothing is imported here that Python has not imported itself: a signal may come at any moment, and from the
first line of ``main`` on it ends the run in good order.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False  # as type checkers know it: importing typing takes time
if TYPE_CHECKING:
    from typing import TextIO


def main() -> None:
    """Run the command line and exit with its code; in a child where it opens foreign files.

    The imports stand inside because the processes that decode images import this module too.
    """
    try:
        from bcu_cli.cli import signals

        signals.handle(signals.end_at_once)
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        os._exit(130)
    _occupy_standard_streams()
    from bcu_cli.cli import supervised

    sys.stdout, sys.stderr = _writable(sys.stdout), _Talk(sys.stderr)
    run = supervised.run if supervised.is_wanted(sys.argv[1:]) else _run_here
    try:
        signals.handle(signals.interrupt)
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        signals.end_at_once()
    signals.handle(signals.end_at_once)
    sys.exit(code)


def _run_here(words: list[str]) -> int:
    from bcu_cli import limits

    limits.join_supervisor()
    from bcu_cli.cli import output
    from bcu_cli.cli.app import run

    output.guard()
    return run(words)


class _Talk(io.TextIOWrapper):
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


def _occupy_standard_streams() -> None:
    """Have the numbers of streams that were closed lead nowhere.

    A file that is opened gets the lowest number that is free: libraries would print into a model.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _writable(stream: TextIO | None) -> TextIO:
    """A stream that any text can be written to: one that was closed leads nowhere."""
    if stream is None:
        return io.TextIOWrapper(_nowhere(), "utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


if __name__ == "__main__":
    main()
