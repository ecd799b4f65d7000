"""bcu: remove a backdoor from an image classifier with unlabeled images.

This module stays light: it imports neither torch nor typer, so that ``bcu --help`` is instant and so
that the processes that decode images start quickly.
"""

import time

STARTED = time.perf_counter()
"""When Python began to import bcu, by its own clock; the start of the interpreter was about 20 ms before."""

__version__ = "0.1.0"
