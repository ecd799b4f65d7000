from __future__ import annotations

import pytest

from bcu_cli.evaluation.gates import Gate, judge

PASSED = Gate(passed=True)


@pytest.mark.parametrize(("attack", "least"), [("badnets", 0.95), ("wanet", 0.95), ("sig", 0.9), ("lc", 0.9)])
def test_the_least_asr_passes_and_less_does_not(attack: str, least: float) -> None:
    assert judge(attack, acc=0.9, asr=least, clean_acc=0.9) == PASSED
    failed = judge(attack, acc=0.9, asr=least - 0.001, clean_acc=0.9)
    assert failed.passed is False
    assert failed.reasons == (f"ASR {100 * least - 0.1:.2f} % is below {100 * least:.0f} %",)


@pytest.mark.parametrize(
    ("clean", "acc"),
    [(0.95, 0.935), (0.9, 0.885), (0.94, 0.925), (0.995, 0.98)],  # 1.5 points on paper, not all so in floats
)
def test_one_and_a_half_points_of_acc_may_be_lost(clean: float, acc: float) -> None:
    assert judge("badnets", acc=acc, asr=1.0, clean_acc=clean) == PASSED
    failed = judge("badnets", acc=acc - 0.001, asr=1.0, clean_acc=clean)
    assert failed.passed is False
    assert failed.reasons == (
        f"ACC {100 * acc - 0.1:.2f} % is 1.60 points below the clean {100 * clean:.2f} %",
    )


def test_more_acc_than_the_clean_model_is_no_fault() -> None:
    assert judge("badnets", acc=0.99, asr=0.99, clean_acc=0.5) == PASSED


def test_every_reason_is_given() -> None:
    assert len(judge("iab", acc=0.1, asr=0.2, clean_acc=0.9).reasons) == 2


def test_a_clean_model_has_no_asr_to_reach() -> None:
    assert judge("none", acc=0.4, asr=None, clean_acc=0.4) == PASSED


def test_without_a_clean_model_nothing_passes_but_a_low_asr_fails() -> None:
    assert judge("badnets", acc=0.9, asr=1.0, clean_acc=None).passed is None
    assert judge("badnets", acc=0.9, asr=0.5, clean_acc=None).passed is False
