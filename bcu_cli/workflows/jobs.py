"""Workflows in separate processes, with requests and results as JSON.

Notices of the workflow go to stderr, one line each. Like ``bcu`` itself, a job has a supervisor that survives
crashes by untrusted files.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bcu_cli import events, limits
from bcu_cli.evaluation.trigger_choice import Own, TriggerChoice
from bcu_cli.report.schema import with_version
from bcu_cli.report.text import printable
from bcu_cli.runs import messages, signals, supervisor
from bcu_cli.runs.explaining import explain
from bcu_cli.workflows.attack import AttackRequest, attack
from bcu_cli.workflows.evaluate import EvaluateRequest, evaluate
from bcu_cli.workflows.evaluation_files import Files
from bcu_cli.workflows.loading import ModelOptions

if TYPE_CHECKING:
    from bcu_cli.workflows.attack import AttackResult
    from bcu_cli.workflows.evaluate import EvaluateResult

PROGRAM = tuple(supervisor.program("from bcu_cli.workflows.jobs import main; main()"))
"""The command that runs a job; the job follows as an argument."""
_DONE, _FAILED, _INTERRUPTED = 0, 2, 130
_VALUES: dict[str, type] = {
    kind.__name__: kind for kind in (AttackRequest, EvaluateRequest, Files, ModelOptions, Own, TriggerChoice)
}


def command(request: AttackRequest | EvaluateRequest) -> list[str]:
    """The command that runs the workflow of a request in another process.

    It prints the JSON document of the result, or a document with an ``error``.
    """
    return [*PROGRAM, json.dumps(to_plain(request))]


def to_plain(value: Any) -> Any:
    """A request as plain values for JSON.

    Raises:
        TypeError: A value is not a path, string, number, tuple or request.
    """
    if is_dataclass(value) and type(value).__name__ in _VALUES:
        parts = {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
        return {"kind": type(value).__name__, **parts}
    if isinstance(value, Path):
        return {"kind": "Path", "path": str(value)}
    if isinstance(value, tuple):
        return [to_plain(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a job cannot take {value!r}")


def from_plain(value: Any) -> Any:
    """The inverse of :func:`to_plain`."""
    if isinstance(value, list):
        return tuple(from_plain(one) for one in value)
    if not isinstance(value, dict):
        return value
    parts = {name: from_plain(one) for name, one in value.items()}
    kind = parts.pop("kind")
    return Path(parts["path"]) if kind == "Path" else _VALUES[kind](**parts)


def main() -> NoReturn:
    """Main function: run the job in the first argument, under a supervisor that is started if needed."""
    if limits.PIPE in os.environ or os.name != "posix":
        _serve(sys.argv[1])
    signals.handle(signals.end_at_once)
    ended = supervisor.run([*PROGRAM, sys.argv[1]])
    fault = None if ended.interrupted else ended.fault
    if fault is not None:
        sys.stdout.write(_error(*fault))
        sys.exit(_FAILED)
    sys.exit(ended.code if ended.code >= 0 else _INTERRUPTED)


def _serve(job: str) -> NoReturn:
    """Run a job, print its result, and exit."""
    signals.handle(signals.interrupt)
    limits.join_supervisor()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps output of libraries out of the answer
    messages.neutralise(events.warn)
    try:
        with events.listening(_tell):
            document = _run(from_plain(json.loads(job))).document
        text, code = json.dumps(with_version(document), allow_nan=False), _DONE
    except KeyboardInterrupt:
        text, code = "", _INTERRUPTED
    except Exception as error:  # the parent reports it
        text, code = _error(*explain(error)), _FAILED
    signals.handle(signals.end_at_once)
    answer.write(text)
    answer.close()
    sys.exit(code)


def _run(request: AttackRequest | EvaluateRequest) -> AttackResult | EvaluateResult:
    return attack(request) if isinstance(request, AttackRequest) else evaluate(request)


def _tell(event: events.Event) -> None:
    if isinstance(event, events.Notice):
        sys.stderr.write(f"{printable(str(event))}\n")
        sys.stderr.flush()


def _error(message: str, hint: str) -> str:
    return json.dumps({"error": {"message": message, "hint": hint}})
