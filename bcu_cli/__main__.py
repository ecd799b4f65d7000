"""The command ``bcu``, also as ``python -m bcu_cli``.

Nothing is imported here that Python has not imported itself. A signal may come at any moment, and from the
first line of ``main`` on it ends the run in good order.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code; in a child where it opens foreign files.

    The imports stand inside because the processes that decode images import this module too.
    """
    try:
        from bcu_cli.runs import signals

        signals.handle(signals.end_at_once)
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        os._exit(130)
    from bcu_cli.cli import streams, supervised

    streams.occupy_standard_streams()
    sys.stdout, sys.stderr = streams.writable(sys.stdout), streams.message_stream(sys.stderr)
    run = supervised.run if supervised.is_wanted(sys.argv[1:]) else _run_here
    try:
        signals.handle(signals.interrupt)
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        signals.end_at_once()
    signals.handle(signals.end_at_once)
    if code == signals.INTERRUPTED:  # at once: the supervisor would kill a slow exit, and say it once more
        sys.stdout.flush()
        signals.end_at_once()
    sys.exit(code)


def _run_here(words: list[str]) -> int:
    from bcu_cli import limits

    limits.join_supervisor()
    from bcu_cli.cli import output
    from bcu_cli.cli.app import run
    from bcu_cli.runs import allocation, library_warnings

    allocation.keep_freed_memory()
    library_warnings.neutralise(output.warn)
    return run(words)


if __name__ == "__main__":
    main()
