"""The last layer's rows: what stands out is named, and it counts only where many rows can be compared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bcu_cli.detectors import verdict
from bcu_cli.detectors.base import Scores, Subject
from bcu_cli.detectors.last_layer import LastLayerOutliers, deviations
from bcu_cli.models import Classifier, Preprocessing
from bcu_cli.training.devices import choose

CPU = choose("cpu", "fp32")
TARGET = 4


def subject(classes: int, raised: float = 0.0) -> Subject:
    """A network whose row of ``TARGET`` has a mean that is raised by deviations of a row's mean."""
    torch.manual_seed(0)
    layer = nn.Linear(64, classes)
    with torch.no_grad():
        nn.init.normal_(layer.weight)
        layer.weight -= layer.weight.mean(1, keepdim=True)
        layer.weight += (torch.linspace(-2.0, 2.0, classes)[torch.randperm(classes)] / 8.0)[:, None]
        layer.weight[TARGET] += raised / 8.0
    preprocessing = Preprocessing(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, source="test")
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), layer)
    return Subject(model=Classifier(network, preprocessing, classes).eval(), images=None, device=CPU)


def word(classes: int, raised: float) -> tuple[str, int]:
    """The verdict where no other detector finds anything."""
    nothing = torch.zeros(classes)
    mmbd = Scores(detector="mmbd", score=0.0, target=0, per_class=nothing)
    judged = verdict.judge([mmbd, LastLayerOutliers().scan(subject(classes, raised))], images=None)
    return judged.word, judged.target


def test_a_raised_row_stands_out() -> None:
    scores = LastLayerOutliers().scan(subject(100, raised=20.0))
    assert scores.target == TARGET == int(scores.per_class.argmax())
    assert scores.score == pytest.approx(float(scores.per_class[TARGET]))
    assert scores.score > 7
    assert {"norm", "maximum", "bias"} <= set(scores.evidence)
    assert LastLayerOutliers().scan(subject(100)).score < 4


def test_it_adds_to_the_verdict_from_its_threshold_and_fifty_classes_on() -> None:
    assert word(100, 20.0) == ("suspicious", TARGET)
    assert word(100, 0.0)[0] == "clean-looking"
    assert word(49, 20.0)[0] == "clean-looking"
    assert word(50, 20.0) == ("suspicious", TARGET)


def test_below_the_threshold_nothing_changes() -> None:
    suspicions = torch.linspace(0.0, 0.9, 60)
    shares = torch.zeros(60)
    shares[3] = 0.99
    assert torch.equal(verdict.raised(suspicions, shares), suspicions)
    shares[3] = 2.0
    raised = verdict.raised(suspicions, shares)
    assert raised[3] == 2.0
    assert torch.equal(raised[4:], suspicions[4:])


def test_robust_deviations_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 103.0])
    assert deviations(values).tolist() == pytest.approx([x / 1.4826 for x in (-2, -1, 0, 1, 100)])
    assert deviations(torch.tensor([2.0, 2.0, 2.0, 2.0, 9.0])) is None


def test_what_cannot_be_compared_gives_nothing_and_says_so() -> None:
    equal = subject(60)
    with torch.no_grad():
        equal.model.network[2].weight.fill_(0.5)
    scores = LastLayerOutliers().scan(equal)
    assert (scores.target, scores.evidence["layer"]) == (None, "its rows hardly differ")
    hidden = subject(60)
    hidden.model.network.append(nn.Tanh())
    scores = LastLayerOutliers().scan(hidden)
    assert (scores.target, scores.evidence["layer"]) == (None, "no layer whose outputs are the logits")
