"""Signals that ask a run to end: Ctrl-C, SIGTERM and SIGHUP mean the same everywhere.

This module imports next to nothing: it is there before anything else is.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

TYPE_CHECKING = False  # as type checkers know it; importing typing would take longer than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType
    from typing import Any, NoReturn

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_INTERRUPTED = 130
_LAST_WORD = b"interrupted\n"


def handle(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> dict[int, Any]:
    """Have these signals handled, and return what handled each before, for ``restore``.

    One that is ignored when the run begins stays so: ``nohup`` and ``&`` ask for that.
    """
    heeded = [number for number in _NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}


def restore(before: Mapping[int, Any]) -> None:
    """Have signals handled as before."""
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the shape of a handler
    """Interrupt the run, which tidies up; another signal ends it at once.

    Raises:
        KeyboardInterrupt: Always.
    """
    handle(end_at_once)
    raise KeyboardInterrupt


def end_at_once(number: int = 0, frame: FrameType | None = None) -> NoReturn:  # noqa: ARG001
    """End the process here and now, whatever it is doing; the arguments are those of a handler."""
    with suppress(OSError):  # nobody is to hear it
        os.write(2, _LAST_WORD)
    os._exit(_INTERRUPTED)
