"""The command ``bcu``, also as ``python -m bcu_cli``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code.

    The import stands inside because the processes that decode images import this module too.
    """
    from bcu_cli.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
