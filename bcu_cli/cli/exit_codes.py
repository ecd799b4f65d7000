"""The exit codes of the commands."""

from __future__ import annotations

DONE = 0
BAD = 1
"""Done, and the verdict is bad."""
FAILED = 2
"""Could not be done or decided."""
INTERRUPTED = 130
UNREAD = 141
"""The reader closed the pipe before the end of the output; the usual code after SIGPIPE."""
