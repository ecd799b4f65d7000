"""Networks of many classes: which classes are searched, that the others have no value, and what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from many_classes import CLASSES, TARGET, Tinted
from torch import nn

from bcu_cli import detectors
from bcu_cli.checkpoints import read
from bcu_cli.detectors import verdict
from bcu_cli.detectors.base import MOST_VALUES, Scores, Subject, find
from bcu_cli.detectors.running import DetectorRun, outlook, run_all
from bcu_cli.detectors.screening import Screening, is_needed, most_searched
from bcu_cli.models import Classifier, Preprocessing, load
from bcu_cli.training.devices import choose

CPU = choose("cpu", "fp32")
SEARCHING = [name for name in detectors.names() if find(name).searches]


def subject(network: nn.Module, classes: int, side: int = 16, images: int | None = 100) -> Subject:
    preprocessing = Preprocessing(input_size=(3, side, side), mean=(0.0,) * 3, std=(1.0,) * 3, source="test")
    drawn = None
    if images is not None:
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(0, 256, (images, 3, side, side), generator=generator).to(torch.uint8)
    return Subject(model=Classifier(network, preprocessing, classes).eval(), images=drawn, device=CPU)


def linear(classes: int, side: int, images: int | None = 100) -> Subject:
    torch.manual_seed(0)
    network = nn.Sequential(nn.AvgPool2d(side // 4), nn.Flatten(), nn.Linear(48, classes))
    nn.init.normal_(network[2].weight, std=3.0)
    network[2].weight.data -= network[2].weight.data.mean(1, keepdim=True)  # grey is of no class
    made = subject(network, classes, side, images)
    if made.images is None:
        return made
    coarse = made.images[:, :, ::2, ::2][:, :, :4, :4].contiguous()  # else all averages are grey
    return replace(made, images=coarse.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3))


def test_how_many_classes_are_searched() -> None:
    assert [most_searched(linear(10, side)) for side in (16, 32, 64, 224)] == [64, 64, 16, 16]
    assert not is_needed(linear(64, 32))
    assert is_needed(linear(65, 32))
    assert not is_needed(linear(16, 224))
    assert is_needed(linear(17, 224))


def test_the_target_that_universal_changes_lead_to_is_chosen_among_random_ones() -> None:
    looked_at = subject(Tinted(), CLASSES)
    chosen = Screening(steps=30).choose(looked_at, [])
    assert len(set(chosen)) == 64
    assert TARGET in chosen
    assert chosen == tuple(sorted(chosen))
    assert chosen == Screening(steps=30).choose(looked_at, [])


def test_what_detectors_rank_first_is_chosen_and_half_of_the_classes_are_random() -> None:
    ranked = torch.zeros(1000)
    ranked[700], ranked[701] = 2.0, 1.0
    scores = Scores(detector="skew", score=1.0, target=700, per_class=ranked)
    looked_at = linear(1000, 224, images=None)
    chosen = Screening().choose(looked_at, [scores])
    assert len(chosen) == 16
    assert {700, 701, *range(6)} <= set(chosen)
    assert len(set(chosen) - {700, 701, *range(6)}) == 8
    assert chosen != Screening().choose(replace(looked_at, seed=1), [scores])
    assert len(set(Screening().choose(looked_at, []))) == 16  # nothing to rank them by


@pytest.mark.parametrize("name", SEARCHING)
def test_a_class_that_was_not_searched_has_no_value(name: str) -> None:
    looked_at = replace(linear(9, 16), classes=(1, 4, 6, 8))
    scores = find(name)(steps=2).scan(looked_at)
    assert scores.searched == (1, 4, 6, 8)
    assert [not value.isnan() for value in scores.per_class] == [index in {1, 4, 6, 8} for index in range(9)]
    assert scores.target in scores.searched
    assert scores.per_class[scores.target] == scores.per_class[[1, 4, 6, 8]].max()
    written = json.loads(json.dumps(DetectorRun(scores=scores, seconds=0.0).document(), allow_nan=False))
    assert written["per_class"].count(None) == 5


@pytest.mark.parametrize("name", SEARCHING)
def test_parts_that_fit_into_memory_give_what_all_together_give(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find(name)(steps=3).scan(linear(6, 16))
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr("bcu_cli.detectors.base.MOST_VALUES", 2 * 32 * 3 * 16 * 16)
    looked_at = replace(linear(6, 16), on_step=lambda done, of: steps.append((done, of)))
    assert len(looked_at.in_parts(32)) == 3
    parts = find(name)(steps=3).scan(looked_at)
    assert parts.target == whole.target
    assert torch.allclose(parts.per_class, whole.per_class, atol=1e-3)
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))


def test_the_verdict_is_of_the_searched_classes() -> None:
    missing = float("nan")
    values = {name: torch.tensor([0.0, missing, 0.0, 9.0, 0.0]) for name in ("inversion", "mmbd")}
    values |= {name: torch.tensor([0.0, missing, 1.0, 0.0, 0.0]) for name in ("perturbation", "warping")}
    values["skew"] = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0])
    scores = [Scores(detector=name, score=1.0, target=3, per_class=each) for name, each in values.items()]
    judged = verdict.judge(scores, images=600)
    assert (judged.word, judged.target) == ("suspicious", 3)
    assert [value == value for value in judged.suspicions] == [True, False, True, True, True]
    assert judged.suspicions[0] == 0.0


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of one step, so that they can be counted in seconds."""
    for name in SEARCHING:
        fewest = {"steps": 1, "batch": 2, "most": 4} if find(name).needs_images else {"steps": 1, "starts": 1}
        monkeypatch.setattr(find(name), "at_large_size", fewest)
    monkeypatch.setattr(Screening, "sized", lambda self, _: replace(self, starts=1, steps=1, batch=4, most=4))


@pytest.mark.usefixtures("short")
def test_cost_and_memory_do_not_grow_with_the_classes() -> None:
    passes, planned, largest = [], [], []
    for classes in (10, 100, 1000):
        looked_at, seen = linear(classes, 224, images=40), list[int]()
        looked_at.model.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].numel()))
        runs = run_all(looked_at, lambda name: lambda done, of: None)
        passes.append(sum(seen))
        largest.append(max(seen))
        planned.append(outlook(looked_at).passes)
        searched = {len(run.scores.searched) for run in runs if run.scores.searched is not None}
        assert searched == (set() if classes == 10 else {16})
        judged = verdict.judge([run.scores for run in runs], images=600)
        assert sum(value == value for value in judged.suspicions) == min(classes, 16)
    assert passes[2] == pytest.approx(passes[1], rel=0.2)
    assert planned[1] == planned[2] > planned[0]
    assert max(largest) <= MOST_VALUES


def test_small_networks_have_the_scores_that_the_thresholds_were_fitted_to() -> None:
    """The values of the version before networks of many classes could be scanned."""
    model = load(read(Path(__file__).parents[1] / "data" / "backdoored16.safetensors")).classifier.eval()
    drawn = torch.randint(0, 256, (96, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    looked_at = Subject(model=model, images=drawn.to(torch.uint8), device=CPU)
    before = {
        "inversion": [-8.783571, -4.905681, -8.796924, -8.796741, -5.562853, -8.817207, -8.787028, -8.825486],
        "mmbd": [4.169211, 3.525661, 1.070996, 1.518113, 2.307544, 3.122908, -4.60517, 2.734545],
        "perturbation": [-2.70805, 1.098612, *[-4.143135] * 2, -2.159484, *[-4.143135] * 3],
        "warping": [-4.143135, 1.098612, *[-4.143135] * 2, -1.568616, *[-4.143135] * 3],
        "skew": [0.041667, 0.888889, 0.0, 0.0, 0.943182, 0.010417, 0.0, 0.0],
    }
    options = {
        "inversion": {"steps": 8, "batch": 4, "most": 32},
        "mmbd": {"steps": 8, "starts": 2},
        "perturbation": {"steps": 4, "batch": 8, "most": 32},
        "warping": {"steps": 4, "batch": 8, "most": 32},
        "skew": {},
    }
    for name, values in before.items():
        scores = find(name)(**options[name]).scan(looked_at)
        assert scores.per_class.tolist() == pytest.approx(values, abs=2e-3), name
    assert all(not find(name)().sized(looked_at).steps < find(name)().steps for name in SEARCHING)
