"""Workflows in separate processes, with requests and results as JSON.

Notices of the workflow go to stderr, one line each. Like ``bcu`` itself, a job has a supervisor that survives
crashes by untrusted files.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from bcu_cli import events, limits
from bcu_cli.evaluation.trigger_choice import Own, TriggerChoice
from bcu_cli.report.text import printable
from bcu_cli.runs import allocation, library_warnings, signals, supervisor
from bcu_cli.runs.error_text import explain
from bcu_cli.workflows.attack import AttackRequest, attack
from bcu_cli.workflows.cleanse import CleanseRequest, CleanseResult, cleanse
from bcu_cli.workflows.evaluate import EvaluateRequest, evaluate
from bcu_cli.workflows.evaluation_files import Files
from bcu_cli.workflows.loading import ModelOptions

if TYPE_CHECKING:
    from bcu_cli.workflows.result import Result

Request: TypeAlias = AttackRequest | CleanseRequest | EvaluateRequest

PROGRAM = tuple(supervisor.program("from bcu_cli.workflows.jobs import main; main()"))
"""The command that runs a job; the job follows as an argument."""
_DONE, _FAILED = 0, 2
_JUDGED = {"not cleansed": 1, "could not tell": 2}
"""Exit codes of jobs that end with a document, but whose verdict is bad."""
_VALUES: dict[str, type] = {
    kind.__name__: kind
    for kind in (AttackRequest, CleanseRequest, EvaluateRequest, Files, ModelOptions, Own, TriggerChoice)
}
_METHOD_OPTIONS = "MethodOptions"


def command(request: Request) -> list[str]:
    """The command that runs the workflow of a request in another process.

    It prints the JSON document of the result, or a document with an ``error``.
    """
    return [*PROGRAM, json.dumps(to_plain(request))]


def to_plain(value: Any) -> Any:
    """A request as plain values for JSON.

    Raises:
        TypeError: A value is not a path, string, number, tuple or request.
    """
    if isinstance(value, CleanseRequest) and value.options is not None:
        options = {"kind": _METHOD_OPTIONS, "method": value.method, "values": _parts(value.options)}
        return to_plain(replace(value, options=None)) | {"options": options}
    if is_dataclass(value) and type(value).__name__ in _VALUES:
        return {"kind": type(value).__name__, **_parts(value)}
    if isinstance(value, Path):
        return {"kind": "Path", "path": str(value)}
    if isinstance(value, tuple):
        return [to_plain(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a job cannot take {value!r}")


def _parts(value: Any) -> dict[str, Any]:
    return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}


def from_plain(value: Any) -> Any:
    """The inverse of :func:`to_plain`."""
    if isinstance(value, list):
        return tuple(from_plain(one) for one in value)
    if not isinstance(value, dict):
        return value
    if value["kind"] == _METHOD_OPTIONS:
        from bcu_cli.defenses.base import find

        return find(value["method"]).Options(**{k: from_plain(one) for k, one in value["values"].items()})
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
    sys.exit(ended.code if ended.code >= 0 else signals.INTERRUPTED)


def _serve(job: str) -> NoReturn:
    """Run a job, print its result, and exit."""
    signals.handle(signals.interrupt)
    limits.join_supervisor()
    allocation.keep_freed_memory()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps output of libraries out of the answer
    library_warnings.neutralise(events.warn)
    try:
        with events.listening(_tell):
            result = _run(from_plain(json.loads(job)))
        text, code = json.dumps(result.to_json(), allow_nan=False), _code(result)
    except KeyboardInterrupt:
        text, code = "", signals.INTERRUPTED
    except Exception as error:  # the parent reports it
        text, code = _error(*explain(error)), _FAILED
    signals.handle(signals.end_at_once)
    answer.write(text)
    answer.close()
    sys.exit(code)


def _run(request: Request) -> Result:
    if isinstance(request, AttackRequest):
        return attack(request)
    return cleanse(request) if isinstance(request, CleanseRequest) else evaluate(request)


def _code(result: Result) -> int:
    verdict = result.verdict if isinstance(result, CleanseResult) else None
    return _JUDGED.get(verdict or "", _DONE)


def _tell(event: events.Event) -> None:
    if isinstance(event, events.Notice):
        sys.stderr.write(f"{printable(str(event))}\n")
        sys.stderr.flush()


def _error(message: str, hint: str) -> str:
    return json.dumps({"error": {"message": message, "hint": hint}})
