"""What method auto says of its work beforehand, against what it does."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from defending import defense
from helpers import lessen_effort

from bcu_cli.training.forecast import FORWARD, TO_IMAGES, TO_WEIGHTS

if TYPE_CHECKING:
    from torch import nn

pytestmark = pytest.mark.usefixtures("short_search")


@pytest.mark.parametrize("quick", [True, False])
def test_every_stage_is_listed_and_those_that_are_sure_come(quick: bool) -> None:
    cleansing = defense("auto", quick=quick)
    listed = cleansing.outlook()
    assert listed is not None
    titles = []
    for stage in cleansing.stages():
        titles.append(stage.title)
        stage.training.run()
    in_order = iter([stage.title for stage in listed.stages])
    assert all(title in in_order for title in titles)
    sure = {stage.title for stage in listed.stages if stage.sure}
    begun = {re.sub("^cleansing, level .", "cleansing, level 0", title) for title in titles}
    tuned = {  # where no trigger stands out, and where the copy learns the canaries
        "planting canaries",
        "looking for weaknesses of the copy",
        "cleansing canaries, level 0",
    }
    assert sure - begun <= {"looking for remaining triggers", *tuned}  # only a good verdict is verified
    assert set(listed.shorter) == (set() if quick else {"--quick"})
    assert all(passes < listed.passes for passes in listed.shorter.values())


def test_passes_are_those_of_the_networks() -> None:
    """Forward passes of each stage's steps are counted; those backward follow from them."""
    cleansing = defense("auto", quick=True)
    listed = cleansing.outlook()
    assert listed is not None
    seen = [0]

    def count(module: nn.Module, inputs: tuple[object, ...]) -> None:
        seen[0] += len(inputs[0])  # type: ignore[arg-type]

    cleansing.teacher.register_forward_pre_hook(count)
    cleansing.student.register_forward_pre_hook(count)
    planned = {stage.title: stage for stage in listed.stages}
    for stage in cleansing.stages():
        seen[0] = 0
        stage.training.run()
        if stage.title == "looking for weaknesses":
            assert planned[stage.title].passes == 2 * seen[0]
        if stage.title.startswith("cleansing, level"):
            forwards = 3.0 + 0.5 + 3.0  # of the teacher, the adversary, and the student
            passes = 3 * FORWARD + 0.5 * TO_IMAGES + 3 * TO_WEIGHTS
            assert planned[stage.title].passes == pytest.approx(seen[0] * passes / forwards)


def test_methods_that_cannot_say_show_each_stage_alone() -> None:
    assert defense("bcu").outlook() is None


def test_the_forwards_of_a_verification_are_those_of_the_networks() -> None:
    """A few more are listed than are made: a class that no image can be led to is left out."""
    cleansing = defense("auto", quick=True)
    listed = cleansing.outlook()
    assert listed is not None
    planned = {stage.title: stage for stage in listed.stages}
    for stage in cleansing.stages():
        if stage.title.startswith("cleansing, level"):
            break
        stage.training.run()
    cleansing.evidence = cleansing._known_triggers()
    seen = [0]

    def count(module: nn.Module, inputs: tuple[object, ...]) -> None:
        seen[0] += len(inputs[0])  # type: ignore[arg-type]

    cleansing.teacher.register_forward_pre_hook(count)
    cleansing.student.register_forward_pre_hook(count)
    trying = planned["cleansing, level 1"].after
    verification = cleansing._verify()
    next(verification)
    assert trying * 0.9 < seen[0] < trying * 1.1
    seen[0] = 0
    with suppress(StopIteration):
        next(verification)
    assert 0 < seen[0] <= planned["looking for remaining triggers"].after


def test_where_nothing_is_re_initialised_no_canaries_and_no_level_1_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on large images, where ``--quick`` shortens nothing that is sure to come."""
    lessen_effort(monkeypatch, reinitialise=False)
    listed = defense("auto", quick=False).outlook()
    assert listed is not None
    titles = [stage.title for stage in listed.stages]
    assert [title for title in titles if "level" in title] == ["cleansing, level 0", "cleansing, level 2"]
    assert not any("canaries" in title for title in titles)
    assert listed.shorter == {}
