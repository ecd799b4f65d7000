"""Warnings and logs of libraries, neutralised: they may hold what a file says."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bcu_cli.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable


def neutralise(warn: Callable[[str], object]) -> None:
    """Make what libraries log harmless to a terminal, and hand on what they warn of.

    Args:
        warn: Called with the text of each warning.
    """

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        warn(str(message))

    logging.setLogRecordFactory(_harmless_record)
    warnings.showwarning = show


def _harmless_record(*arguments: Any, **options: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **options)
    with suppress(Exception):  # a library's arguments may not fit its own message; logging says so
        record.msg, record.args = printable(record.getMessage()), ()
    return record
