"""Mixes of the weights of an original and its cleansed network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from defending import CPU, pictures, small
from torch import nn

from bcu_cli.defenses import auto
from bcu_cli.defenses.adversarial import mixing
from bcu_cli.defenses.adversarial.mixing import Mixture
from bcu_cli.defenses.adversarial.residual_search import ModelPair
from bcu_cli.defenses.auto import Auto, AutoOptions
from bcu_cli.defenses.base import Verdict, copy_of
from bcu_cli.evaluation.measures import Proportion
from bcu_cli.images.folder import hold_out

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
    """A pair on which every trigger succeeds by the share of the cleansed network in the mix."""

    def __init__(self, network: Classifier, left: dict[float, dict[int, int]]) -> None:
        self.cleansed = network
        self.left = left
        self.share = 1.0

    def success(self, network: object, change: object, target: int, **_: object) -> Proportion:
        return Proportion(hits=self.left[self.share][target], of=100)


@pytest.mark.parametrize(
    ("patch", "sinusoid", "share"),
    [
        ({0.5: 13, 0.6: 13, 0.7: 13, 1.0: 10}, {}, 0.7),
        ({0.5: 14, 0.6: 14, 0.7: 13, 1.0: 10}, {}, 0.9),
        ({0.5: 14, 0.6: 14, 0.7: 14, 1.0: 10}, {}, 1.0),
        ({0.5: 0, 0.6: 0, 0.7: 0, 1.0: 0}, {0.5: 60, 0.6: 31, 0.7: 30}, 0.9),
        ({0.5: 0, 0.6: 0, 0.7: 0, 1.0: 0}, {0.5: 60, 0.6: 53, 0.7: 52, 1.0: 50}, 0.8),
    ],
)
def test_the_mildest_mix_leaves_hardly_more_than_the_network_with_a_margin(
    monkeypatch: pytest.MonkeyPatch, patch: dict[float, int], sinusoid: dict[float, int], share: float
) -> None:
    original, other = moved(1.0)
    pair = Stubbed(other, {each: {0: hits, 1: sinusoid.get(each, 0)} for each, hits in patch.items()})
    mixture = Mixture(original, other)
    take = mixture.take

    def taken(of: float) -> None:
        pair.share = of
        take(of)

    monkeypatch.setattr(mixture, "take", taken)
    sinusoids = [(torch.clone, 1)] if sinusoid else []
    assert mixture.mildest(pair, [(torch.clone, 0)], sinusoids, 200) == share


def test_many_sinusoids_are_tried_on_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    original, other = moved(1.0)
    pair = Stubbed(other, {each: {0: 0, 1: 0} for each in (*mixing.SHARES, 1.0)})
    tried: list[tuple[int, int | None]] = []

    def success(network: object, change: object, target: int, *, most: int | None) -> Proportion:
        tried.append((target, most))
        return Proportion(hits=0, of=100)

    monkeypatch.setattr(pair, "success", success)
    assert Mixture(original, other).mildest(pair, [(torch.clone, 0)], [(torch.clone, 1)], 200) == 0.7
    assert tried == [(0, None), (1, 200), (0, None), (1, 200)]  # the cleansed network, then one mix


def test_the_comparison_of_mixes_is_in_the_outlook() -> None:
    stages = {stage.title: stage for stage in cleansing().outlook().stages}
    assert stages["cleansing, level 0"].after > stages["cleansing, level 1"].after


def cleansing() -> Auto:
    """A finished training at the gentle level, after a search by which a patch stood out."""
    used, held_out = hold_out(pictures(), 0.2, most=1000, generator=torch.Generator().manual_seed(0))
    original, other = moved(1.0)
    made = Auto(original, used, AutoOptions(), device=CPU, held_out=held_out)
    made.student, made.level, made.mix = other, auto.GENTLE, 1.0
    usual = {("patch", target): Proportion(hits=5, of=100) for target in (1, 2, 3)}
    made._success_before = {("patch", 0): Proportion(hits=99, of=100), **usual}
    return made


@pytest.mark.parametrize(("good", "judged"), [([0.5], [0.5]), ([1.0], [0.5, 1.0]), ([], [0.5, 1.0])])
def test_the_whole_student_is_judged_where_the_mix_is_not_good(
    monkeypatch: pytest.MonkeyPatch, good: list[float], judged: list[float]
) -> None:
    made = cleansing()
    weights = [parameter.detach().clone() for parameter in made.student.parameters()]
    seen: list[float] = []

    def judge() -> Iterator[Stage]:
        seen.append(made.mix)
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


def test_other_levels_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = cleansing()
    made.level = auto.GENTLE + 1
    monkeypatch.setattr(made, "_judge_as_it_is", lambda: iter(()))
    monkeypatch.setattr(made, "_mildest", lambda _: pytest.fail("re-initialised weights cannot be mixed"))
    assert not list(made._judge())
    assert made.mix == 1.0


def test_a_mix_is_chosen_by_the_patches_and_sinusoids_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a perturbation that stands out, which clean networks have, too."""
    made = cleansing()
    change = torch.clone

    def works(hits: int) -> Proportion:
        return Proportion(hits=hits, of=100)

    usual = {(kind, target): works(20) for kind in ("patch", "perturbation") for target in (1, 2, 3)}
    made._success_before = {("patch", 0): works(99), ("perturbation", 0): works(99), **usual}
    made._sinusoids_before = [(change, 0, works(95)), (change, 2, works(95)), (change, 0, works(80))]
    made._judging_change = lambda kind, target: change  # type: ignore[method-assign]
    given: list[list[int]] = []

    def mildest(
        self: Mixture,
        pair: object,
        patches: list[tuple[object, int]],
        waves: list[tuple[object, int]],
        most: int,
    ) -> float:
        assert most == 200
        given.extend([[target for _, target in patches], [target for _, target in waves]])
        return 0.7

    monkeypatch.setattr(Mixture, "mildest", mildest)
    assert made._mildest(Mixture(made.teacher, made.student)) == 0.7
    assert given == [[0], [0]]  # nor by sinusoids to another class than the patch's


def test_where_nothing_stands_out_no_mix_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """On large images the gentle level comes there, too, at its full strength."""
    made = cleansing()
    made._success_before = {("patch", target): Proportion(hits=5, of=100) for target in range(4)}
    monkeypatch.setattr(made, "_judge_as_it_is", lambda: iter(()))
    monkeypatch.setattr(made, "_mildest", lambda _: pytest.fail("nothing tells how much is enough"))
    assert not list(made._judge())
    assert made.mix == 1.0


def test_on_large_images_a_perturbation_that_stands_out_alone_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = cleansing()
    kinds = ("patch", "perturbation")
    usual = {(kind, target): Proportion(hits=5, of=100) for kind in kinds for target in range(4)}
    made._success_before = {**usual, ("perturbation", 3): Proportion(hits=99, of=100)}
    made._sinusoids_before = []
    made._judging_change = lambda kind, target: torch.clone  # type: ignore[method-assign]
    given: list[int] = []

    def mildest(self: Mixture, pair: object, triggers: list[tuple[object, int]], *_: object) -> float:
        given.extend(target for _, target in triggers)
        return 1.0

    monkeypatch.setattr(Mixture, "mildest", mildest)
    made._mildest(Mixture(made.teacher, made.student))
    assert given == [3]
