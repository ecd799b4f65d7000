"""Has each process say in a file that a stop would now wait for the end of a step: ``helpers.Telling``."""

import os
import signal
from pathlib import Path

_handle = signal.signal


def _tell(number, handler):
    before = _handle(number, handler)
    if getattr(handler, "__qualname__", "").startswith("stoppable."):
        Path(os.environ["BCU_TELL"], str(os.getpid())).touch()
    return before


signal.signal = _tell
