"""bcu: remove a backdoor from an image classifier with unlabeled images.

This module stays light: it imports neither torch nor typer, so that ``bcu --help`` is instant and so
that the processes that decode images start quickly.
"""

__version__ = "0.1.0"
