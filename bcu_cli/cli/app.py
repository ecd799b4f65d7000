"""The command line as a whole: its commands, and the handling of errors (one line, a hint, an exit code)."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from bcu_cli import events
from bcu_cli.cli import output
from bcu_cli.cli.exit_codes import DONE, FAILED, INTERRUPTED, UNREAD
from bcu_cli.cli.options import Version
from bcu_cli.runs import signals
from bcu_cli.runs.error_text import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

_ClickUsageError: Any = typer.BadParameter.__base__
"""Click's usage error; some versions of Typer vendor Click, so it cannot be imported by its name."""


COMMANDS = {
    "inspect": "Say what files are, and whether they are safe to open.",
    "cleanse": "Remove what may be hidden in a model, and judge the result.",
    "evaluate": "Measure accuracy and attack success on labelled images.",
    "attack": "Train a backdoored network, to test with.",
    "demo": "Show the whole story on built-in images.",
    "benchmark": "Measure methods on backdoored networks, by a plan.",
}
"""The commands, each the module of this package with its name, and what the list of commands says of them."""
_SETTINGS: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False}


def command_line(name: str) -> typer.Typer:
    """One of ``COMMANDS``; its module is imported only here, so that ``bcu --help`` is instant."""
    module = import_module(f"bcu_cli.cli.{name}")
    if isinstance(several := getattr(module, "app", None), typer.Typer):
        return several
    single = typer.Typer(**_SETTINGS)
    single.command(name)(getattr(module, name))
    return single


class _Commands(TyperGroup):
    """The commands, imported when they are asked for; the list of them is printed without Rich."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands: dict[str, Any] = dict.fromkeys(COMMANDS)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - always the same
        """The names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - always the same
        """A command by its name; None if there is none."""
        if cmd_name in COMMANDS and self.commands[cmd_name] is None:
            self.commands[cmd_name] = command = typer.main.get_command(command_line(cmd_name))
            command.name = cmd_name
            for each in (command, *getattr(command, "commands", {}).values()):
                each.help = _with_whole_paragraphs(each.help)
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; see Click."""
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - always the same
        """Write the list of commands; see Click."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _with_whole_paragraphs(text: str | None) -> str:
    """A docstring whose paragraphs are one line each: Typer keeps the line breaks of all but the first."""
    return "\n\n".join(" ".join(each.split()) for each in (text or "").split("\n\n"))


app = typer.Typer(
    name="bcu",
    cls=_Commands,
    help="Inspect an image classifier you do not trust, and remove its backdoor with unlabeled images.",
    epilog="Exit codes: 0 done, 1 done and the verdict is bad, 2 not done or not decided, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    **_SETTINGS,
)


@app.callback()
def _global(version: Version = False) -> None:
    """Options that belong to no command."""


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
            code = app(words or ["--help"], prog_name="bcu", standalone_mode=False, obj=arguments)
        sys.stdout.flush()
        if code == INTERRUPTED:  # some versions of Typer return this code on an interrupt
            return _interrupted()
        return int(code or DONE) if words else FAILED
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
    with signals.last_word() as unsaid:
        if unsaid:
            output.say("interrupted")
    return INTERRUPTED


def _explain(error: Exception) -> tuple[str, str]:
    """Message and hint for an error, a line each."""
    if isinstance(error, _ClickUsageError):
        context = error.ctx
        return (
            error.format_message(),
            f"{context.command_path if context and context.parent else 'bcu'} --help lists the "
            + ("options" if context and context.parent else "commands"),
        )
    return explain(error)
