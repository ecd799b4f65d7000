"""Neutralising the warnings and logs of libraries, which may quote text from an untrusted file."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bcu_cli.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable


def neutralise(warn: Callable[[str], object]) -> None:
    """Remove control characters from the log messages of libraries, and pass on their warnings.

    Args:
        warn: Called with the text of each warning.
    """

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        warn(str(message))

    logging.setLogRecordFactory(_harmless_record)
    warnings.showwarning = show


def _harmless_record(*arguments: Any, **options: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **options)
    with suppress(Exception):  # arguments may not fit the message; logging reports that later
        record.msg, record.args = printable(record.getMessage()), ()
    return record
