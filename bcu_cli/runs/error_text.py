"""The message and the hint for any exception that ends a command."""

from __future__ import annotations

import errno
import os

from bcu_cli import limits
from bcu_cli.errors import BcuError, faulty_installation


def explain(error: Exception) -> tuple[str, str]:
    """Explain an error in one line that says what is wrong, and a hint that says what to do."""
    if isinstance(error, BcuError):
        return error.message, error.hint
    if installation := faulty_installation(error):
        return installation.message, installation.hint
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
        return f"the output could not be written: {os.strerror(error.errno)}", "make room, or write elsewhere"
    if limits.is_lack_of_memory(error):
        return "there is not enough memory", "use fewer images (--max-images) or a smaller --input-size"
    reason = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
    return f"this should not happen: {what}", "run it again with --debug and report what it prints"
