"""What reaches the screen: data on stdout, talk on stderr, all of it neutralised."""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bcu_cli.report.text import percent as percent
from bcu_cli.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.progress import Progress

SCHEMA_VERSION = 1
_WIDTH = 120
"""Columns of tables that go into a file or a pipe."""


_quiet = False


def quiet(yes: bool) -> None:
    """Whether nothing is shown from now on: another process of the same run shows it."""
    global _quiet  # as a stream that leads nowhere
    _quiet = yes


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH
    shape: Any = {"width": width, "soft_wrap": not stream.isatty()}
    return Console(stderr=stderr, quiet=_quiet, highlight=False, markup=False, emoji=False, **shape)


def guard() -> None:
    """Have what libraries warn of or log reach the screen neutralised: it may hold what a file says."""
    logging.setLogRecordFactory(_harmless_record)
    warnings.showwarning = _show_warning


def _harmless_record(*arguments: Any, **options: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **options)
    with suppress(Exception):  # a library's arguments may not fit its own message; logging says so
        record.msg, record.args = printable(record.getMessage()), ()
    return record


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    warn(str(message))


def say(text: str, *, apart: bool = False) -> None:
    """A line of talk; ``apart`` leaves a line empty in front of it."""
    _console(stderr=True).print("\n" * apart + printable(text))


def trace(error: BaseException) -> None:
    """Where an error came from, for ``--debug``."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        say(line)


def warn(text: str) -> None:
    """A line that the user should not miss."""
    _console(stderr=True).print(f"warning: {printable(text)}", style="yellow")


def fail(message: str, hint: str) -> None:
    """Say what is wrong in one line, and what to do in another."""
    console = _console(stderr=True)
    console.print(f"error: {printable(' '.join(message.split()))}", style="red", soft_wrap=True)
    if hint:
        console.print(f"hint: {printable(' '.join(hint.split()))}", soft_wrap=True)


def document(content: dict[str, Any]) -> None:
    """One JSON document on stdout; NaN and infinities, which JSON does not have, are refused."""
    plain_document({"schema_version": SCHEMA_VERSION, **content})


def plain_document(content: dict[str, Any]) -> None:
    """One JSON document on stdout whose schema is not bcu's own."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if not _quiet:
        sys.stdout.write(text)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout."""
    drawn = Table(title=printable(title), title_justify="left")
    for column in header:
        drawn.add_column(printable(column), overflow="fold")
    for row in rows:
        drawn.add_row(*map(printable, row))
    _console(stderr=False).print(drawn)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns on stdout."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(printable(name), printable(value))
    _console(stderr=False).print(grid)


class Bar:
    """A progress bar on stderr; it vanishes when it is done, and where stderr is no terminal."""

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(printable(description), total=None, note="")

    def advance(self, by: int, of: int, note: str = "") -> None:
        """Go on by so many of so many."""
        self._progress.update(self._task, advance=by, total=of)
        if note:
            self._progress.update(self._task, note=printable(note))

    def restart(self, note: str) -> None:
        """Begin anew with another part of the work."""
        self._progress.reset(self._task, total=None, note=printable(note))


@contextmanager
def bar(description: str) -> Iterator[Bar]:
    """A progress bar for as long as the context lasts."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = _console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=_quiet or not console.is_terminal
    ) as progress:
        yield Bar(progress, description)


def measure(share: dict[str, Any]) -> str:
    """A measure of a report for people: share, counts, interval."""
    low, high = share["interval95"]
    interval = f"95 %: {100 * low:.2f} to {100 * high:.2f}"
    return f"{percent(share['value'])} ({share['hits']} of {share['of']}; {interval})"


def speed(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Time and, where it was measured, speed of a report for people."""
    time = ("time", f"{report['seconds']['total']:.0f} s on {report['device']['name']}")
    if not report["training"]:
        return [time]
    last = report["training"][-1]
    share = percent(last["share_of_peak"])
    product = f"a {report['device']['precision']} matrix product"
    return [
        time,
        ("speed", f"{last['images_per_second']:,.0f} images a second, {share} of the peak of {product}"),
    ]


def preprocessing(values: dict[str, Any]) -> str:
    """The preprocessing of a report for people."""
    size = "×".join(str(side) for side in values["input_size"])
    mean, std = (",".join(f"{value:g}" for value in values[key]) for key in ("mean", "std"))
    return f"{size}, mean {mean}, std {std}, by {values['source']}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
