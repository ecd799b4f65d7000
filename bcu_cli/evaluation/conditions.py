"""Conditions such as ``asr>0.05`` under which an evaluation fails."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_FORM = re.compile(r"\s*(\w+)\s*([<>]=?)\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*", re.ASCII)
_OF_MODELS = ("acc", "worst_class_acc", "agreement")
_OF_TRIGGERS = ("asr", "ra")
MEASURES = (*_OF_MODELS, *_OF_TRIGGERS)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A bound in [0, 1] on a measure; ``text`` is the condition as the user wrote it."""

    text: str
    measure: str
    operator: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a measured value makes the evaluation fail."""
        return bool(_OPERATORS[self.operator](value, self.bound))


def parse(text: str) -> Condition:
    """Parse a condition: a measure, an operator, and a fraction.

    Raises:
        UsageError: The text is not a condition, or its number is not a fraction.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise UsageError(
            f"--fail-if {text} is no condition", "like --fail-if 'asr>0.05', with <, <=, > or >="
        )
    measure, comparison, bound = form[1], form[2], float(form[3])
    if measure not in MEASURES:
        raise UsageError(
            f"--fail-if {text}: there is no measure {measure}", f"there are {', '.join(MEASURES)}"
        )
    if bound > 1:
        raise UsageError(
            f"--fail-if {text}: {form[3]} is no fraction", "give a fraction from 0 to 1, like 0.05 for 5 %"
        )
    return Condition(text=text, measure=measure, operator=comparison, bound=bound)


def refuse_unmeasured(conditions: Sequence[Condition], measured: Collection[str]) -> None:
    """Refuse a condition on a measure that will not be measured.

    Raises:
        UsageError: There is such a condition.
    """
    for condition in conditions:
        if condition.measure not in measured:
            option = "--trigger" if condition.measure in _OF_TRIGGERS else "--against"
            raise UsageError(
                f"--fail-if {condition.text}: {condition.measure} is not measured", f"give {option} too"
            )


def judge(conditions: Sequence[Condition], models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The verdict for a report: whether it passed, and which conditions hold for which model and trigger.

    Args:
        conditions: Conditions under which the evaluation fails.
        models: The report's entries of the models.
    """
    failed = [
        {"condition": condition.text, "measure": condition.measure, "value": value} | where
        for condition in conditions
        for where, value in _values(condition.measure, models)
        if condition.holds(value)
    ]
    return {"passed": not failed, "failed": failed}


def _values(measure: str, models: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Every value of a measure, with the model and the trigger that it belongs to."""
    for model in models:
        path = model["model"]["path"]
        if measure in _OF_TRIGGERS:
            for entry in model["triggers"]:
                yield {"model": path, "trigger": entry["trigger"]["label"]}, entry[measure]["value"]
        else:
            share = model["worst_class"]["acc"] if measure == "worst_class_acc" else model[measure]
            yield {"model": path, "trigger": None}, share["value"]
