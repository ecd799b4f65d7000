"""Output to the terminal: data on stdout, messages on stderr, all text neutralised.

Rich is imported when something is printed by it, since that takes as long as all the rest of ``bcu --help``.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import TYPE_CHECKING, Any

from bcu_cli import events
from bcu_cli.report.schema import with_version
from bcu_cli.report.text import percent as percent
from bcu_cli.report.text import printable
from bcu_cli.report.text import size as size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.progress import Progress, TaskID

_WIDTH = 120
"""Width in characters of tables that go into a file or a pipe."""
_BAR = 1000
"""Steps of a bar that shows a whole run."""


_quiet = False


def quiet(yes: bool) -> None:
    """Turn all output off or on; of several processes only one prints."""
    global _quiet  # a property of the process, like its streams
    _quiet = yes


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH
    shape: Any = {"width": width, "soft_wrap": not stream.isatty()}
    return Console(stderr=stderr, quiet=_quiet, highlight=False, markup=False, emoji=False, **shape)


def say(text: str, *, apart: bool = False) -> None:
    """Print a message on stderr; ``apart`` prints an empty line before it."""
    _console(stderr=True).print("\n" * apart + printable(text))


def trace(error: BaseException) -> None:
    """Print the traceback of an error on stderr, for ``--debug``."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        say(line)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    _console(stderr=True).print(f"warning: {printable(text)}", style="yellow")


def fail(message: str, hint: str) -> None:
    """Print an error and a hint on stderr, a line each."""
    console = _console(stderr=True)
    console.print(f"error: {printable(' '.join(message.split()))}", style="red", soft_wrap=True)
    if hint:
        console.print(f"hint: {printable(' '.join(hint.split()))}", soft_wrap=True)


def document(content: dict[str, Any]) -> None:
    """Print a JSON document with a schema version on stdout; NaN and infinities are refused."""
    plain_document(with_version(content))


def plain_document(content: dict[str, Any]) -> None:
    """Print a JSON document without bcu's schema version on stdout."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if not _quiet:
        sys.stdout.write(text)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout."""
    from rich.table import Table

    drawn = Table(title=printable(title), title_justify="left")
    for column in header:
        drawn.add_column(printable(column), overflow="fold")
    for row in rows:
        drawn.add_row(*map(printable, row))
    _console(stderr=False).print(drawn)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns on stdout."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(printable(name), printable(value))
    _console(stderr=False).print(grid)


class Screen:
    """Shows events on stderr: messages as lines, and progress as bars that vanish at the end.

    Bars are drawn only if stderr is a terminal.
    """

    def __init__(self) -> None:
        self._bars: dict[int, tuple[Progress, TaskID]] = {}

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        if isinstance(event, events.Progress):
            self._show(event)
        elif event.is_warning:
            warn(event.text)
        elif not (event.is_noted and sys.stderr.isatty()):
            say(event.text)

    def _show(self, event: events.Progress) -> None:
        if event.ended:
            if event.part in self._bars:
                self._bars.pop(event.part)[0].stop()
            return
        if event.part not in self._bars:
            if _quiet or not _console(stderr=True).is_terminal:
                return
            self._bars[event.part] = _bar(event)
        bar, task = self._bars[event.part]
        done, total, note = event.done, event.total, event.note
        if event.overall:  # the bar shows the whole run, and the note the stage
            steps = f"{done}/{total}" if total is not None else ""
            note = " ".join(filter(None, (steps, note, event.time_left)))
            done, total = round(_BAR * event.overall.share), _BAR
        heading = printable(event.heading)
        bar.update(task, description=heading, completed=done, total=total, note=printable(note))


def _bar(event: events.Progress) -> tuple[Progress, TaskID]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    title, note = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]"))
    alone = (title, BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
    columns = (title, BarColumn(), note) if event.overall else alone
    bar = Progress(*columns, console=_console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task(printable(event.heading), total=None, note="")


def measure(share: dict[str, Any]) -> str:
    """Format a measure of a report: share, counts, interval."""
    low, high = share["interval95"]
    interval = f"95 %: {100 * low:.2f} to {100 * high:.2f}"
    return f"{percent(share['value'])} ({share['hits']} of {share['of']}; {interval})"


def speed(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Facts on the time and, if measured, the speed of a report."""
    time = ("time", f"{report['seconds']['total']:.0f} s on {report['device']['name']}")
    last = report["training"][-1] if report["training"] else None
    if not last or not last["images_per_second"]:  # nothing was trained, or by the run that is continued
        return [time]
    share = percent(last["share_of_peak"])
    product = f"a {report['device']['precision']} matrix product"
    return [
        time,
        ("speed", f"{last['images_per_second']:,.0f} images a second, {share} of the peak of {product}"),
    ]


def preprocessing(values: dict[str, Any]) -> str:
    """Format the preprocessing of a report."""
    size = "×".join(str(side) for side in values["input_size"])
    mean, std = (",".join(f"{value:g}" for value in values[key]) for key in ("mean", "std"))
    return f"{size}, mean {mean}, std {std}, by {values['source']}"
