"""How the commands end."""

from __future__ import annotations

DONE = 0
BAD = 1
"""Done, and the verdict is bad."""
FAILED = 2
"""Could not be done or decided."""
INTERRUPTED = 130
UNREAD = 141
"""The reader of the output has gone before its end, as of any program that SIGPIPE ends."""
