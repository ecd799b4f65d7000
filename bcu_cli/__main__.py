"""The command ``bcu``, also as ``python -m bcu_cli``."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TextIO


def main() -> None:
    """Run the command line and exit with its code.

    The import stands inside because the processes that decode images import this module too.
    """
    from bcu_cli.cli import output
    from bcu_cli.cli.app import run

    sys.stdout, sys.stderr = _writable(sys.stdout), _writable(sys.stderr)
    output.guard()
    sys.exit(run(sys.argv[1:]))


def _writable(stream: TextIO | None) -> TextIO:
    """A stream that any text can be written to: one that was closed leads nowhere."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


if __name__ == "__main__":
    main()
