"""Static inspection of a pickle: which globals it would import and call, and whether weights need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcu_cli.checkpoints.archive import MAX_PICKLE_BYTES
from bcu_cli.checkpoints.checkpoint import Finding
from bcu_cli.checkpoints.pickles.effects import Effect, effects, plain_name, script_effect
from bcu_cli.checkpoints.pickles.machine import BrokenPickleError, Program, follow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bcu_cli.checkpoints.pickles.machine import GlobalUse


__all__ = ["OBJECT_PREFIX", "BrokenPickleError", "inspect_pickle"]

OBJECT_PREFIX = "holds an object of "  # start of the message of an unsafe "pickle-object"
_MOST_NAMED = 5


def inspect_pickle(
    data: bytes, *, script: bool = False, strict: bool = False, position: int = 0
) -> list[Finding]:
    """Findings about one pickle, by the globals that it imports and what it does with them.

    All objects whose creation has no effects are reported together in one note.

    Args:
        data: The pickle, with nothing after it.
        script: Whether it is part of a TorchScript archive; else it is a pickle of torch.save.
        strict: Whether to report every object as unsafe, because torch opens this pickle unrestricted.
        position: Offset of the pickle in the file, in bytes; added to the findings' offsets.

    Raises:
        BrokenPickleError: The pickle is broken, too large or too much work, and holds nothing unsafe; or it
            calls functions of torch in a way that torch never does.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise BrokenPickleError(f"it is larger than {MAX_PICKLE_BYTES:,} bytes")
    try:
        program = follow(data)
    except BrokenPickleError as error:
        return _findings_before(error, _judge(error, script=script, strict=strict, position=position))
    findings = _judge(program, script=script, strict=strict, position=position)
    if program.end != len(data):
        message = f"hides {len(data) - program.end:,} bytes after the end of its pickle"
        offset = position + program.end
        findings.append(Finding(rule="pickle-trailing", message=message, severity="unsafe", offset=offset))
    if program.faults and not findings:
        raise BrokenPickleError(program.faults[0])
    if program.faults and not _is_unsafe(findings):
        message = f"does with objects what weights never need: {program.faults[0]}"
        findings.append(Finding(rule="pickle-hidden-global", message=message, severity="unsafe"))
    return findings


def _findings_before(error: BrokenPickleError, findings: list[Finding]) -> list[Finding]:
    """The findings about a pickle that is not in canonical form; raises the error if none is unsafe."""
    if error.ambiguous:
        message = f"{error}, so different programs read it differently"
        return [*findings, Finding(rule="pickle-ambiguous", message=message, severity="unsafe")]
    if _is_unsafe(findings):
        message = "is broken after that, when its program would already have run"
        return [*findings, Finding(rule="pickle-broken", message=message, severity="unsafe")]
    raise error


def _judge(asked: Program | BrokenPickleError, *, script: bool, strict: bool, position: int) -> list[Finding]:
    """One finding for each unsafe global, and one note about all inert ones."""
    if script:
        judged = [(use, script_effect(use.name)) for use in asked.uses]
    else:
        judged = effects(asked.uses, asked.calls)
    least = Effect.OBJECT if strict or _holds_whole_model(asked) else Effect.INERT
    unsafe: dict[str | None, Finding] = {}
    inert: dict[str, GlobalUse] = {}
    for use, effect in judged:
        if effect is Effect.NONE or use.name in unsafe:
            continue
        if use.name is not None and max(effect, least) is Effect.INERT:
            inert.setdefault(use.name, use)
        else:
            unsafe[use.name] = _finding(use, max(effect, least), position)
    return [*unsafe.values(), *_note(inert, position)]


def _holds_whole_model(asked: Program | BrokenPickleError) -> bool:
    made = any(call.name.startswith("torch.nn.modules.") for call in asked.calls)
    return made or (isinstance(asked, Program) and asked.holds_module)


def _finding(use: GlobalUse, effect: Effect, position: int) -> Finding:
    if use.name is None:
        rule, message = "pickle-hidden-global", f"hides what it asks for ({use.opcode})"
    elif effect is Effect.ACTS:
        rule, message = "pickle-global", f"asks for {use.name} when opened"
    else:
        rule, message = "pickle-object", OBJECT_PREFIX + use.name
    return Finding(rule=rule, message=message, severity="unsafe", offset=position + use.offset)


def _note(inert: dict[str, GlobalUse], position: int) -> list[Finding]:
    """The note about inert objects, if there are any."""
    if not inert:
        return []
    names = ", ".join(plain_name(name) for name in list(inert)[:_MOST_NAMED])
    more = f" and {len(inert) - _MOST_NAMED} more" if len(inert) > _MOST_NAMED else ""
    message = f"holds objects beside weights, which bcu leaves out: {names}{more}"
    offset = position + next(iter(inert.values())).offset
    return [Finding(rule="pickle-object", message=message, severity="note", offset=offset)]


def _is_unsafe(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "unsafe" for finding in findings)
