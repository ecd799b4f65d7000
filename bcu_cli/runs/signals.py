"""Signals that ask a run to end: Ctrl-C (SIGINT), SIGTERM and SIGHUP, which are all treated alike.

This module imports very little, because it is loaded before everything else.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

TYPE_CHECKING = False  # type checkers know this name; importing typing would be slow
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType
    from typing import Any, NoReturn

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_INTERRUPTED = 130
_LAST_WORD = b"interrupted\n"


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
    with suppress(OSError):  # stderr may be closed
        os.write(2, _LAST_WORD)
    os._exit(_INTERRUPTED)
