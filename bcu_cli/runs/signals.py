"""Signals that ask a run to end: Ctrl-C (SIGINT), SIGTERM and SIGHUP, which are all treated alike.

This module imports very little, because it is loaded before everything else.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # type checkers know this name; importing typing would be slow
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType
    from typing import Any, NoReturn

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
INTERRUPTED = 130
"""Exit code of a run that a signal has ended."""
_last_word = b"interrupted\n"


def handle(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> dict[int, Any]:
    """Set a handler for these signals, and return their previous handlers for ``restore``.

    A signal that is ignored when the run begins stays ignored, as ``nohup`` and ``&`` require.
    """
    not_ignored = [number for number in _NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in not_ignored}


def restore(before: Mapping[int, Any]) -> None:
    """Restore the handlers that ``handle`` returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the shape of a handler
    """Interrupt the run, which then cleans up; another signal ends the process immediately.

    Raises:
        KeyboardInterrupt: Always.
    """
    handle(end_at_once)
    raise KeyboardInterrupt


def end_at_once(number: int = 0, frame: FrameType | None = None) -> NoReturn:  # noqa: ARG001
    """End the process immediately, without cleaning up; the arguments are those of a signal handler."""
    handle(signal.SIG_IGN)
    with suppress(OSError):  # stderr may be closed
        os.write(2, _last_word)
    os._exit(INTERRUPTED)


@contextmanager
def last_word() -> Iterator[bool]:
    """Ignore signals while the block says that the run was interrupted; yields whether it is unsaid."""
    before = handle(signal.SIG_IGN)
    try:
        yield bool(_last_word)
        last_word_was_said()
    finally:
        restore(before)


def last_word_was_said() -> None:
    """Let :func:`end_at_once` be silent from now on: it was said that the run was interrupted."""
    global _last_word
    _last_word = b""
