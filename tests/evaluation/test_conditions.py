from __future__ import annotations

import pytest

from bcu_cli.errors import UsageError
from bcu_cli.evaluation.conditions import Condition, judge, parse, refuse_unmeasured


def model(path: str, acc: float, worst: float, **asr_of_triggers: float) -> dict:
    triggers = [
        {"trigger": {"label": label}, "asr": {"value": asr}, "ra": {"value": 1 - asr}}
        for label, asr in asr_of_triggers.items()
    ]
    return {
        "model": {"path": path},
        "acc": {"value": acc},
        "worst_class": {"acc": {"value": worst}},
        "agreement": {"value": 0.5},
        "triggers": triggers,
    }


def test_the_parts_of_a_condition() -> None:
    assert parse(" asr >= 5e-2 ") == Condition(text=" asr >= 5e-2 ", measure="asr", operator=">=", bound=0.05)
    assert parse("worst_class_acc<.5").measure == "worst_class_acc"


@pytest.mark.parametrize(
    ("operator", "below", "equal", "above"),
    [
        ("<", True, False, False),
        ("<=", True, True, False),
        (">", False, False, True),
        (">=", False, True, True),
    ],
)
def test_operators(operator: str, below: bool, equal: bool, above: bool) -> None:
    condition = parse(f"acc{operator}0.5")
    assert [condition.holds(value) for value in (0.4, 0.5, 0.6)] == [below, equal, above]


@pytest.mark.parametrize(
    "text",
    ["", "asr", "asr>", ">0.5", "asr=0.5", "asr>5%", "asr>nan", "asr>-1", "asr>1.2.3", "asr>0.1 acc<1"],
)
def test_nonsense(text: str) -> None:
    with pytest.raises(UsageError, match="is no condition"):
        parse(text)


def test_a_measure_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="no measure f1") as caught:
        parse("f1<0.5")
    assert "acc, worst_class_acc, agreement, asr, ra" in caught.value.hint


@pytest.mark.parametrize("text", ["asr>5", "acc<1.01", "acc<1e999"])
def test_a_percentage_gets_a_hint_that_fractions_are_meant(text: str) -> None:
    with pytest.raises(UsageError, match="is no fraction") as caught:
        parse(text)
    assert "a fraction from 0 to 1" in caught.value.hint


@pytest.mark.parametrize(("text", "option"), [("ra<0.5", "--trigger"), ("agreement<0.5", "--against")])
def test_a_measure_that_will_not_be_there(text: str, option: str) -> None:
    with pytest.raises(UsageError, match="is not measured") as caught:
        refuse_unmeasured([parse(text)], {"acc", "worst_class_acc"})
    assert option in caught.value.hint
    refuse_unmeasured([parse("acc<0.5")], {"acc", "worst_class_acc"})


def test_any_model_and_any_trigger_can_fail() -> None:
    models = [model("a", 0.9, 0.4, badnets=0.01, sig=0.3), model("b", 0.7, 0.6, badnets=0.2, sig=0.0)]
    gate = judge([parse("asr>0.05"), parse("acc<0.8"), parse("worst_class_acc<0.5")], models)
    assert gate["passed"] is False
    assert [(f["condition"], f["model"], f["trigger"], f["value"]) for f in gate["failed"]] == [
        ("asr>0.05", "a", "sig", 0.3),
        ("asr>0.05", "b", "badnets", 0.2),
        ("acc<0.8", "b", None, 0.7),
        ("worst_class_acc<0.5", "a", None, 0.4),
    ]


def test_a_gate_that_is_passed() -> None:
    gate = judge([parse("asr>0.5"), parse("agreement<0.5")], [model("a", 0.9, 0.4, badnets=0.5)])
    assert gate == {"passed": True, "failed": []}
