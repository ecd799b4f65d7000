"""The command ``bcu``, also as ``python -m bcu_cli``.

Nothing is imported here that Python has not imported itself: a signal may come at any moment, and from the
first line of ``main`` on it ends the run in good order.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code.

    The imports stand inside because the processes that decode images import this module too.
    """
    try:
        from bcu_cli.cli import signals

        signals.handle(signals.end_at_once)
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        os._exit(130)
    from bcu_cli.cli import streams

    streams.occupy_standard_streams()
    from bcu_cli.cli.app import run

    sys.stdout, sys.stderr = streams.writable(sys.stdout), streams.talking(sys.stderr)
    try:
        signals.handle(signals.interrupt)
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        signals.end_at_once()
    signals.handle(signals.end_at_once)
    sys.exit(code)


if __name__ == "__main__":
    main()
