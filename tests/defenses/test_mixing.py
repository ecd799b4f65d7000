"""Mixes of the weights of an original and its cleansed network."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from defending import CPU, pictures, small
from torch import nn

from bcu_cli.defenses import auto
from bcu_cli.defenses.adversarial import mixing
from bcu_cli.defenses.adversarial.evidence import Evidence
from bcu_cli.defenses.adversarial.mixing import Mixture
from bcu_cli.defenses.adversarial.residual_search import ModelPair, TriggerSuccess
from bcu_cli.defenses.auto import Auto, AutoOptions
from bcu_cli.defenses.base import Verdict, copy_of
from bcu_cli.errors import UsageError
from bcu_cli.evaluation.measures import Proportion
from bcu_cli.images.folder import hold_out
from bcu_cli.training.inference import predict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Stage


def moved(by: float) -> tuple[Classifier, Classifier]:
    """A network, and a copy of it with everything moved."""
    original = small().eval()
    other = copy_of(original)
    with torch.no_grad():
        for value in other.state_dict().values():
            value.add_(by if value.is_floating_point() else int(by))
    return original, other


def test_a_mix_lies_between_both_networks() -> None:
    original, other = moved(2.0)
    before = {name: value.clone() for name, value in original.state_dict().items()}
    mixture = Mixture(original, other)
    for share in (0.5, 0.0, 1.0, 0.25):  # each from the weights at first, not from the mix before
        mixture.take(share)
        for name, value in other.state_dict().items():
            by = 2.0 * share if value.is_floating_point() else 2
            assert torch.allclose(value, before[name] + by), name
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())


def test_counters_are_not_mixed() -> None:
    original = nn.BatchNorm1d(2)
    other = nn.BatchNorm1d(2)
    other(torch.rand(4, 2))
    Mixture(original, other).take(0.5)
    assert int(other.num_batches_tracked) == 1  # type: ignore[arg-type]


class Stubbed(ModelPair):
    """A pair on which a trigger succeeds by the share of the cleansed network in the mix."""

    def __init__(self, network: Classifier, left: dict[float, int], agreeing: float = 0.5) -> None:
        self.cleansed = network
        self.left, self.agreeing = left, agreeing
        self.share = 1.0

    def success(self, *_: object, **__: object) -> Proportion:
        return Proportion(hits=self.left[self.share], of=100)

    def agreement(self) -> float:
        return self.agreeing


def mildest(
    monkeypatch: pytest.MonkeyPatch,
    left: dict[float, int],
    agreeing: float,
    triggers: int,
    margin: float = mixing.MARGIN,
) -> float:
    original, other = moved(1.0)
    pair, mixture = Stubbed(other, left, agreeing), Mixture(original, other)
    take = mixture.take

    def taken(of: float) -> None:
        pair.share = of
        take(of)

    monkeypatch.setattr(mixture, "take", taken)
    return mixture.mildest(pair, [(torch.clone, 0)] * triggers, margin=margin)


@pytest.mark.parametrize(
    ("left", "share"),
    [
        ({0.2: 13, 0.3: 13, 0.4: 13, 0.5: 13, 0.6: 13, 0.7: 13, 1.0: 10}, 0.4),
        ({0.2: 14, 0.3: 14, 0.4: 14, 0.5: 14, 0.6: 14, 0.7: 13, 1.0: 10}, 0.9),
        ({0.2: 14, 0.3: 14, 0.4: 14, 0.5: 14, 0.6: 14, 0.7: 14, 1.0: 10}, 1.0),
        ({0.2: 11, 0.3: 10, 1.0: 0}, 0.5),
    ],
)
def test_the_mildest_mix_leaves_hardly_more_than_the_network_with_a_margin(
    monkeypatch: pytest.MonkeyPatch, left: dict[float, int], share: float
) -> None:
    assert mildest(monkeypatch, left, 0.95, triggers=1) == share


@pytest.mark.parametrize(("margin", "share"), [(0.0, 0.2), (0.2, 0.4), (0.8, 1.0), (1.0, 1.0)])
def test_a_margin_is_added(monkeypatch: pytest.MonkeyPatch, margin: float, share: float) -> None:
    left = dict.fromkeys((0.2, 1.0), 0)
    assert mildest(monkeypatch, left, 0.95, triggers=1, margin=margin) == share


@pytest.mark.parametrize(("triggers", "agreeing", "share"), [(1, 0.96, 1.0), (0, 0.96, 1.0), (0, 0.95, 0.7)])
def test_a_network_that_answers_as_before_is_not_mixed_and_without_a_trigger_the_share_is_fixed(
    monkeypatch: pytest.MonkeyPatch, triggers: int, agreeing: float, share: float
) -> None:
    assert mildest(monkeypatch, {0.2: 0, 1.0: 0}, agreeing, triggers) == share


def test_agreement_is_that_of_both_networks_on_the_images_to_select_on() -> None:
    original, other = moved(1.0)
    images = pictures().images
    pair = ModelPair(original, other, images, images[:1], CPU)
    same = predict(original, images, CPU) == predict(other, images, CPU)
    assert pair.agreement() == pytest.approx(float(same.float().mean()))


def test_the_comparison_of_mixes_is_in_the_outlook() -> None:
    stages = {stage.title: stage for stage in cleansing().outlook().stages}
    assert stages["cleansing, level 0"].after > stages["cleansing, level 1"].after


@pytest.fixture(autouse=True)
def one_class_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny networks answer most noise with one class, which is no reason against a verdict here."""
    monkeypatch.setattr(auto, "LARGEST_SHARE", 1.0)


def cleansing() -> Auto:
    """A finished training at the gentle level, after a search by which a patch stood out."""
    used, held_out = hold_out(pictures(), 0.2, most=1000, generator=torch.Generator().manual_seed(0))
    original, other = moved(1.0)
    made = Auto(original, used, AutoOptions(), device=CPU, held_out=held_out)
    made.student, made.level, made.mix = other, auto.GENTLE, 1.0
    usual = {("patch", target): Proportion(hits=5, of=100) for target in (1, 2, 3)}
    made.triggers.successes = {("patch", 0): Proportion(hits=99, of=100), **usual}
    return made


def known(*, stands_out: bool, after: int = 5, held_out: int = 50, canary: int | None = None) -> Evidence:
    """Evidence with or without a patch that stands out, and perhaps with a canary."""
    found = [success(99 if stands_out and not target else 5, after, target) for target in range(4)]
    return Evidence(
        found=found,
        sinusoids=[],
        trials=[] if canary is None else [[success(canary, 5, 0)]],
        residual_searches=[],
        confident_agreement=Proportion(hits=0, of=100),
        held_out=held_out,
    )


def success(before: int, after: int, target: int) -> TriggerSuccess:
    return TriggerSuccess(
        trigger="patch",
        target=target,
        before=Proportion(hits=before, of=100),
        after=Proportion(hits=after, of=100),
        change=torch.clone,
    )


@pytest.mark.parametrize(
    ("evidence", "good", "judged"),
    [
        (known(stands_out=True), [0.5], [0.5]),
        (known(stands_out=True), [0.7, 0.9, 1.0], [0.5, 0.7]),
        (known(stands_out=True), [1.0], [0.5, 0.7, 0.9, 1.0]),
        (known(stands_out=True), [], [0.5, 0.7, 0.9, 1.0]),
        (known(stands_out=True, held_out=49), [], [0.5]),  # too few images for a good verdict
        (
            known(stands_out=True, held_out=49, after=60),
            [],
            [0.5, 0.7, 0.9, 1.0],
        ),  # but more may remove what still works
        (known(stands_out=False), [], [0.5]),  # nothing for a good verdict to rest on
        (known(stands_out=False, canary=90), [], [0.5, 0.7, 0.9, 1.0]),
        (known(stands_out=False, canary=79), [], [0.5]),
    ],
)
def test_more_of_the_student_is_judged_where_the_mix_is_not_good_and_more_may_help(
    monkeypatch: pytest.MonkeyPatch, evidence: Evidence, good: list[float], judged: list[float]
) -> None:
    made = cleansing()
    made.triggers.successes = {(each.trigger, each.target): each.before for each in evidence.found}
    trained = made.student
    weights = [parameter.detach().clone() for parameter in trained.parameters()]
    seen: list[float] = []

    def judge() -> Iterator[Stage]:
        seen.append(made.mix)
        made.evidence = evidence
        return iter(())

    monkeypatch.setattr(made, "_judge_as_it_is", judge)
    monkeypatch.setattr(made, "_mildest", lambda _: 0.5)
    words = {True: "cleansed", False: "could not tell"}
    monkeypatch.setattr(made, "verdict", lambda: Verdict(word=words[made.mix in good], why=""))  # type: ignore[arg-type]
    assert not list(made._judge())
    assert (seen, made.mix) == (judged, judged[-1])
    by = 1.0 - made.mix
    for parameter, full in zip(made.student.parameters(), weights, strict=True):
        assert torch.allclose(parameter, full - by, atol=1e-5)
    # What was trained stays as it was, for ``--resume``.
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), weights, strict=True))


@pytest.mark.parametrize(
    ("share", "shares"),
    [(0.2, [0.2, 0.4, 0.6, 0.8, 1.0]), (0.7, [0.7, 0.9, 1.0]), (0.9, [0.9, 1.0]), (1.0, [1.0])],
)
def test_each_further_mix_holds_more_of_the_student(share: float, shares: list[float]) -> None:
    assert mixing.onward(share) == shares


def test_other_levels_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = cleansing()
    made.level = auto.GENTLE + 1
    monkeypatch.setattr(made, "_judge_as_it_is", lambda: iter(()))
    monkeypatch.setattr(made, "_mildest", lambda _: pytest.fail("re-initialised weights cannot be mixed"))
    assert not list(made._judge())
    assert made.mix == 1.0


USUAL, RARE = 60, 20
"""Success of triggers for other classes, beside which a class is not clear, and beside which it is."""


@pytest.mark.parametrize(
    ("outstanding", "others", "chosen_by", "share"),
    [
        ([("patch", 0), ("perturbation", 1)], USUAL, [0], 0.4),  # clean networks have such perturbations, too
        ([("perturbation", 3)], USUAL, [3], 0.7),  # it may be natural: as where nothing stands out
        ([("perturbation", 3)], RARE, [3], 0.4),
        ([("warp", 2), ("perturbation", 1)], RARE, [1, 2], 0.4),
        ([], RARE, [], 0.7),
    ],
)
def test_a_mix_is_chosen_by_the_patches_that_stand_out_or_else_by_other_triggers(
    monkeypatch: pytest.MonkeyPatch,
    outstanding: list[tuple[str, int]],
    others: int,
    chosen_by: list[int],
    share: float,
) -> None:
    made = cleansing()
    found = {(kind, target): others for kind in ("patch", "perturbation", "warp") for target in range(4)}
    found |= dict.fromkeys(outstanding, 100)
    made.triggers.successes = {each: Proportion(hits=hits, of=100) for each, hits in found.items()}
    monkeypatch.setattr(made.triggers, "change", lambda kind, target: torch.clone)
    given: list[int] = []

    def mildest(self: Mixture, pair: object, triggers: list[tuple[object, int]], *, margin: float) -> float:
        given.extend(target for _, target in triggers)
        return 0.2 + margin

    monkeypatch.setattr(Mixture, "mildest", mildest)
    assert made._mildest(Mixture(made.teacher, made.student)) == share
    assert sorted(given) == chosen_by
    made.effort = replace(made.effort, least_share=0.6)  # as for large images
    assert made._mildest(Mixture(made.teacher, made.student)) == 0.8
    made._least_share = 1.0  # the canaries died only there
    assert made._mildest(Mixture(made.teacher, made.student)) == 1.0


@pytest.mark.parametrize(("prefer", "share"), [("accuracy", 0.5), (None, 0.7), ("removal", 1.0)])
def test_a_preference_moves_the_mix(prefer: str | None, share: float) -> None:
    made = cleansing()
    made.options = replace(made.options, prefer=prefer)
    made.triggers.successes = {("patch", target): Proportion(hits=5, of=100) for target in range(4)}
    with torch.no_grad():  # the student answers unlike the original
        for parameter in made.student.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    assert made._mildest(Mixture(made.teacher, made.student)) == share


def test_an_unknown_preference_is_refused() -> None:
    with pytest.raises(UsageError, match="--prefer speed makes no sense"):
        AutoOptions(prefer="speed")
