"""The command line as a whole: its commands, and the handling of errors (one line, a hint, an exit code)."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer

from bcu_cli import events
from bcu_cli.cli import attack, benchmark, cleanse, demo, evaluate, inspect, output
from bcu_cli.cli.exit_codes import DONE, FAILED, INTERRUPTED, UNREAD
from bcu_cli.cli.options import Version
from bcu_cli.runs.error_text import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

_ClickUsageError: Any = typer.BadParameter.__base__
"""Click's usage error; some versions of Typer vendor Click, so it cannot be imported by its name."""

app = typer.Typer(
    name="bcu",
    help="Inspect an image classifier you do not trust, and remove its backdoor with unlabeled images.",
    epilog="Exit codes: 0 done, 1 done and the verdict is bad, 2 could not be done, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _global(version: Version = False) -> None:
    """Options that belong to no command."""


app.command("inspect")(inspect.inspect)
app.command("cleanse")(cleanse.cleanse)
app.command("evaluate")(evaluate.evaluate)
app.command("attack")(attack.attack)
app.add_typer(benchmark.app, name="benchmark")
app.command("demo")(demo.demo)


def run(arguments: Sequence[str]) -> int:
    """Run a command line, and return its exit code.

    Args:
        arguments: The arguments after ``bcu``. ``--debug`` may stand anywhere.
    """
    try:
        return _run(arguments)
    except (BrokenPipeError, SystemExit):  # Typer and Rich turn a closed pipe into an exit
        _drop_stdout()
        return UNREAD
    except OSError as error:  # stdout cannot be written to
        _drop_stdout()
        with suppress(OSError):  # nor can stderr
            output.fail(*_explain(error))
        return FAILED


def _run(arguments: Sequence[str]) -> int:
    debug = "--debug" in arguments
    try:
        with events.listening(output.Screen()):
            words = [word for word in arguments if word != "--debug"]
            code = app(words, prog_name="bcu", standalone_mode=False, obj=arguments)
        sys.stdout.flush()
        if code == INTERRUPTED:  # some versions of Typer return this code on an interrupt
            return _interrupted()
        return int(code or DONE)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return _interrupted()
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            output.trace(error)
        message, hint = _explain(error)
        if message:  # Click has no message where it has shown the help
            output.fail(message, hint)
        if "--json" in arguments:
            output.document({"error": {"message": message, "hint": hint}})
        return FAILED


def _drop_stdout() -> None:
    """Redirect stdout to the null device, since Python would flush its buffer at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _interrupted() -> int:
    output.say("interrupted")
    return INTERRUPTED


def _explain(error: Exception) -> tuple[str, str]:
    """Message and hint for an error, a line each."""
    if isinstance(error, _ClickUsageError):
        context = error.ctx
        return (
            error.format_message(),
            f"{context.command_path if context else 'bcu'} --help lists the options",
        )
    return explain(error)
