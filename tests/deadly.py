"""Images whose decoding goes wrong in every way, for the processes that decode to stumble over."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


class Deadly(type(Path())):  # type: ignore[misc]
    """A file that breaks, by its name, the process which asks for its size."""

    def stat(self, **options: Any) -> Any:
        if self.name == "crash.png":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.name == "hang.png":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            time.sleep(1000)
        if self.name == "memory.png":
            bytearray(4 * 2**30)
        if self.name == "exit.png":
            os._exit(3)
        if self.name == "noise.png":
            os.write(2, b"\x1b[2J")
            os.write(1, b"\x1b[2J")
        return super().stat(**options)
