"""Commands that open untrusted files run in a child process; crashes of the child are explained here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bcu_cli.limits import PIPE
from bcu_cli.runs import signals, supervisor

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUPERVISED = ("attack", "cleanse", "evaluate")
"""Commands that read untrusted files in their process."""


def is_wanted(words: Sequence[str]) -> bool:
    """Whether a command line must run in a child.

    Args:
        words: The arguments after ``bcu``.
    """
    if os.name != "posix" or PIPE in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return False
    return bool(words) and words[0] in _SUPERVISED and not {"-h", "--help"} & set(words)


def run(words: Sequence[str]) -> int:
    """Run a command line of bcu in a child, and return its exit code.

    Args:
        words: The arguments after ``bcu``.
    """
    ended = supervisor.run(supervisor.command(words))
    fault = None if ended.interrupted else ended.fault
    if ended.code >= 0 and fault is None:
        if ended.code == signals.INTERRUPTED:
            signals.last_word_was_said()  # by the child
        return ended.code
    from bcu_cli.cli import output
    from bcu_cli.cli.exit_codes import FAILED

    if fault is None:
        with signals.last_word():
            output.say("interrupted")
        return signals.INTERRUPTED
    output.fail(*fault)
    if "--json" in words:
        output.document({"error": {"message": fault[0], "hint": fault[1]}})
    return FAILED
