"""Gates that a backdoored model of a benchmark must pass before defenses are tested on it."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_ASR = 0.95
"""Least attack success rate of a model."""
LEAST_ASR_OF = {"sig": 0.90, "lc": 0.90}
"""Least attack success rate of clean-label attacks, which reach less."""
MOST_ACC_LOST = 0.015
"""Most clean accuracy lost to a clean model, as a share: 1.5 percentage points."""
_ROUNDING = 1e-9
"""Tolerance for rounding errors."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether a model passes, and why not.

    Args:
        passed: Whether the model passes; None where that is undecided.
        reasons: The reasons against it as sentences; empty where it passes.
    """

    passed: bool | None
    reasons: tuple[str, ...] = ()


def judge(attack: str, *, acc: float, asr: float | None, clean_acc: float | None) -> Gate:
    """The gate of one model.

    Args:
        attack: Name of the attack.
        acc: Clean accuracy, in [0, 1].
        asr: Attack success rate, in [0, 1]; None for a model without a backdoor.
        clean_acc: Clean accuracy of a model without a backdoor, trained likewise; None where there is none.
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
        return Gate(passed=None, reasons=("there is no clean model to compare ACC with",))
    return Gate(passed=True)
