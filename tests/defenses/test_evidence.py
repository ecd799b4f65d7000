"""The evidence of method auto, and the verdict that follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bcu_cli.defenses.adversarial.evidence import Evidence, clear_classes, standing_out
from bcu_cli.defenses.adversarial.residual_search import ResidualSearch, TriggerSuccess
from bcu_cli.evaluation.measures import Proportion


def share(percent: int) -> Proportion:
    return Proportion(hits=percent, of=100)


def of_kind(kind: str, before: int, after: int, target: int = 0) -> TriggerSuccess:
    return TriggerSuccess(
        trigger=kind, target=target, before=share(before), after=share(after), change=torch.clone
    )


def success(before: int, after: int, target: int = 0) -> TriggerSuccess:
    return of_kind("patch", before, after, target)


USUAL = [success(50, 50, 7), success(60, 60, 8), success(70, 70, 9)]
"""What is found for classes without a backdoor."""


def evidence(**given: object) -> Evidence:
    """Evidence that shows nothing, but for what is given."""
    nothing: dict[str, object] = {
        "found": [],
        "sinusoids": [],
        "trials": [],
        "residual_searches": [],
        "confident_agreement": share(99),
        "held_out": 50,
    }
    return Evidence(**{**nothing, **given})  # type: ignore[arg-type]


def judged(canaries: list[TriggerSuccess], found: list[TriggerSuccess], **given: object) -> str:
    trials = [canaries] if canaries else []
    return evidence(trials=trials, found=found + USUAL, **given).verdict().word


CLEAR = 30
"""Most images of 100 with which the 95 % interval of a success ends below ``MAX_TRIGGER_SUCCESS``."""
WORKS = 50
"""Fewest images of 100 with which it begins above."""


@pytest.mark.parametrize(
    ("canaries", "found", "word"),
    [
        ([success(100, 0), success(95, 20)], [success(99, CLEAR)], "cleansed"),
        ([success(100, 0), success(95, 20)], [], "cleansed"),
        ([success(100, 0), success(95, 21)], [], "could not tell"),  # a canary alone cannot veto
        ([success(100, 0), success(79, 79)], [], "cleansed"),  # a canary that was never there proves nothing
        ([success(79, 0)], [], "could not tell"),  # nor do none
        ([success(79, 0)], [success(99, WORKS)], "not cleansed"),  # but what still works speaks for itself
        ([success(100, 0)], [success(99, WORKS)], "not cleansed"),  # what was found still works
        ([success(100, 0)], [success(99, WORKS - 1)], "could not tell"),  # too few images to say
        ([success(100, 0)], [success(99, CLEAR + 1)], "could not tell"),
        ([success(100, 0)], [success(89, 89)], "cleansed"),  # what did not work before proves nothing
        ([success(100, 0)], [success(95, 95)], "cleansed"),  # nor what works hardly better than for others
        (
            [success(100, 0)],
            [success(99, 99, each) for each in range(5)],
            "cleansed",
        ),  # nor what leads to most
        ([], [success(99, 5)], "cleansed"),  # --quick
        ([], [success(80, 5)], "could not tell"),  # --quick, and nothing was found
    ],
)
def test_the_verdict(canaries: list[TriggerSuccess], found: list[TriggerSuccess], word: str) -> None:
    assert judged(canaries, found) == word


@pytest.mark.parametrize("kind", ["perturbation", "warp"])
@pytest.mark.parametrize(
    ("after", "controls", "word"),
    [
        (CLEAR, (5, 5, 5), "cleansed"),
        (60, (5, 5, 5), "not cleansed"),
        (60, (5, 60, 5), "not cleansed"),  # the median counts
        (60, (80, 80, 5), "cleansed"),  # no more than what any class can be reached with
        (80, (80, 80, 5), "cleansed"),
        (81, (80, 80, 5), "could not tell"),
        (40, (5, 5, 5), "could not tell"),  # 40 of 100 may be more than 40 %
        (95, (80, 80, 5), "not cleansed"),
    ],
)
def test_perturbations_and_warps_are_compared_with_those_for_control_classes(
    kind: str, after: int, controls: tuple[int, ...], word: str
) -> None:
    searched = (
        of_kind(kind, 99, 5),
        *[of_kind(kind, 50, control, target) for target, control in enumerate(controls, start=1)],
    )
    of_patches = tuple(success(99, 90, target) for target in range(4))  # say nothing of other kinds
    searches = [
        ResidualSearch(search="gradient", suspects=(0,), found=found) for found in (of_patches, searched)
    ]
    found = [of_kind(kind, 99, after), *[of_kind(kind, 50, 5, target) for target in (1, 2, 3)]]
    assert evidence(found=found, residual_searches=searches).verdict().word == word


def test_a_patch_is_not_compared_with_those_for_control_classes() -> None:
    searched = tuple(success(50, 80, target) for target in (1, 2, 3))
    searches = [ResidualSearch(search="gradient", suspects=(0,), found=searched)]
    found = [success(99, 60), *[success(50, 5, target) for target in (1, 2, 3)]]
    assert evidence(found=found, residual_searches=searches).verdict().word == "not cleansed"


@pytest.mark.parametrize(("before", "word"), [(89, "cleansed"), (90, "not cleansed")])
def test_what_stands_out_counts_only_where_it_works(before: int, word: str) -> None:
    found = [success(before, before), *[success(5, 5, target) for target in (1, 2, 3)]]
    assert evidence(found=found, trials=[[success(100, 0)]]).verdict().word == word


@pytest.mark.parametrize(("usual", "found"), [(75, [("patch", 0)]), (76, [])])
def test_where_most_classes_are_reached_none_stands_out(usual: int, found: list[tuple[str, int]]) -> None:
    """There one image more or less would decide."""
    successes = [Proportion(hits=1000, of=1000), *[Proportion(hits=10 * usual, of=1000)] * 3]
    assert standing_out([("patch", target, each) for target, each in enumerate(successes)]) == found


def test_one_trigger_alone_does_not_stand_out() -> None:
    """There is no other class to compare it with."""
    assert standing_out([("patch", 0, share(100))]) == []
    assert standing_out([("patch", 0, share(100)), ("warp", 1, share(0))]) == []


def test_a_network_that_answers_otherwise_is_no_success() -> None:
    assert judged([success(100, 0)], [], confident_agreement=share(69)) == "could not tell"


def test_a_remaining_sinusoid_counts_against_it_and_a_removed_one_proves_nothing() -> None:
    assert judged([success(100, 0)], [], sinusoids=[success(95, 40)]) == "cleansed"
    assert judged([success(100, 0)], [], sinusoids=[success(95, 0), success(90, 41)]) == "could not tell"
    assert judged([], [], sinusoids=[success(95, 0)]) == "could not tell"
    assert judged([], [success(99, 5)], sinusoids=[success(95, 41)]) == "could not tell"


@pytest.mark.parametrize(
    ("kind", "usual", "target", "word"),
    [
        ("patch", 25, 0, "could not tell"),  # of the backdoor's class
        ("patch", 25, 1, "cleansed"),  # of another class, so natural
        ("patch", 26, 1, "cleansed"),  # no patch stands out by nature
        ("perturbation", 25, 1, "cleansed"),
        ("perturbation", 26, 1, "could not tell"),  # which may stand out by nature
    ],
)
def test_where_a_backdoor_has_a_clear_class_only_sinusoids_to_it_count(
    kind: str, usual: int, target: int, word: str
) -> None:
    found = [of_kind(kind, 100, 5), *[of_kind(kind, usual, usual, each) for each in (1, 2, 3)]]
    searched = tuple(of_kind(kind, 60, 5, each) for each in range(4))
    searches = [ResidualSearch(search="gradient", suspects=(0,), found=searched)]
    sinusoids = [replace(success(95, 60), target=target)]
    known = evidence(found=found, sinusoids=sinusoids, residual_searches=searches)
    verdict = known.verdict()
    assert verdict.word == word
    assert ("taken for natural, works on 60%" in verdict.why) is (word == "cleansed")
    assert known.triggers_remain is (word != "cleansed")


@pytest.mark.parametrize(
    ("patch", "perturbation", "clear"),
    [(0, None, {0}), (0, 1, {0}), (None, 1, set()), (None, None, set())],
)
def test_a_class_is_clear_where_a_patch_stands_out_and_not_where_a_perturbation_alone_does(
    patch: int | None, perturbation: int | None, clear: set[int]
) -> None:
    found = [("patch", target, share(100 if target == patch else 60)) for target in range(4)]
    found += [("perturbation", target, share(100 if target == perturbation else 60)) for target in range(4)]
    assert clear_classes(found) == clear


@pytest.mark.parametrize(("warp", "clear"), [(0, {0}), (1, set())])
def test_a_class_is_clear_where_two_kinds_of_triggers_stand_out_for_it(warp: int, clear: set[int]) -> None:
    found = [("perturbation", target, share(60 if target else 100)) for target in range(4)]
    found += [("warp", target, share(100 if target == warp else 60)) for target in range(4)]
    assert clear_classes(found) == clear


def test_on_few_images_nothing_is_called_cleansed() -> None:
    assert judged([success(100, 0)], []) == "cleansed"
    assert judged([success(100, 0)], [], held_out=49) == "could not tell"
    assert judged([success(100, 0)], [success(99, WORKS)], held_out=49) == "not cleansed"
