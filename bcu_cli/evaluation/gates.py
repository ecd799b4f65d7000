"""Which models of a benchmark are good enough to test defenses on: the gate of each, with its reasons."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_ASR = 0.95
LEAST_ASR_OF = {"sig": 0.90, "lc": 0.90}
"""Of the attacks that change no label and so reach less."""
MOST_ACC_LOST = 0.015
"""Against a clean model, as a share: 1.5 percentage points."""
_ROUNDING = 1e-9
"""Differences of shares that are equal on paper."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether a model passes, and why not.

    Args:
        passed: None where it could not be decided.
        reasons: In words, one for each thing that is missing; empty where it passes.
    """

    passed: bool | None
    reasons: tuple[str, ...] = ()


def judge(attack: str, *, acc: float, asr: float | None, clean_acc: float | None) -> Gate:
    """The gate of one backdoored model; more ACC than the clean model's is no fault.

    Args:
        attack: Its name.
        acc: Clean accuracy, in [0, 1].
        asr: Attack success rate, in [0, 1]; None where nothing was implanted, so that none is asked for.
        clean_acc: Clean accuracy of a model without a backdoor, trained alike; None where there is none.
    """
    least = LEAST_ASR_OF.get(attack, LEAST_ASR)
    reasons = []
    if asr is not None and asr < least - _ROUNDING:
        reasons.append(f"ASR {100 * asr:.2f} % is below {100 * least:.0f} %")
    if clean_acc is not None and clean_acc - acc > MOST_ACC_LOST + _ROUNDING:
        lost = f"{100 * (clean_acc - acc):.2f} points below the clean {100 * clean_acc:.2f} %"
        reasons.append(f"ACC {100 * acc:.2f} % is {lost}")
    if reasons:
        return Gate(passed=False, reasons=tuple(reasons))
    if clean_acc is None:
        return Gate(passed=None, reasons=("there is no clean model to compare its ACC with",))
    return Gate(passed=True)
