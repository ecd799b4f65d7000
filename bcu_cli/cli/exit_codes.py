"""The exit codes of the commands."""

from __future__ import annotations

from bcu_cli.runs.signals import INTERRUPTED as INTERRUPTED

DONE = 0
BAD = 1
"""Done, and the verdict is bad."""
FAILED = 2
"""Could not be done or decided."""
UNREAD = 141
"""The reader closed the pipe before the end of the output; the usual code after SIGPIPE."""
