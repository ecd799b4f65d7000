"""The detector of sinusoidal triggers, and what it adds to the verdict."""

from __future__ import annotations

import pytest
import torch
from sinusoidal import CLASSES, IMAGES, SIDE, TARGET, Noisy, sinusoid

from bcu_cli.detectors import verdict
from bcu_cli.detectors.base import Scores, Subject
from bcu_cli.detectors.sinusoid import SinusoidalTriggers
from bcu_cli.evaluation.spectrum import MIN_LEAD
from bcu_cli.models import Classifier, Preprocessing
from bcu_cli.training.devices import choose

CPU = choose("cpu", "fp32")


def subject(network: torch.nn.Module, side: int = SIDE) -> Subject:
    preprocessing = Preprocessing(input_size=(3, side, side), mean=(0.0,) * 3, std=(1.0,) * 3, source="test")
    images = (IMAGES.repeat(4, 1, 1, 1) * 255).to(torch.uint8)
    return Subject(model=Classifier(network, preprocessing, CLASSES).eval(), images=images, device=CPU)


def nothing(name: str) -> Scores:
    return Scores(detector=name, score=0.0, target=0, per_class=torch.zeros(CLASSES))


def judged(scores: Scores) -> tuple[str, int]:
    """The verdict where no other detector finds anything."""
    others = [nothing(name) for name in verdict.calibrations()["images"].units]
    found = verdict.judge([*others, scores], images=1000)
    return found.word, found.target


def test_a_sinusoidal_trigger_makes_its_class_suspicious() -> None:
    trigger = sinusoid(0, 6, 0.7)
    scores = SinusoidalTriggers(steps=120).scan(subject(Noisy(trigger)))
    assert scores.target == TARGET
    assert scores.score == pytest.approx(float(scores.per_class[TARGET]))
    assert scores.score >= MIN_LEAD
    assert (scores.evidence["cycles_down"], scores.evidence["cycles_across"]) == (0, 6)
    assert scores.evidence["success"] >= 0.9
    assert judged(scores) == ("suspicious", TARGET)
    before, after = scores.examples or pytest.fail("nothing is shown")
    assert before.shape == after.shape and not torch.equal(before, after)


def test_a_network_without_one_is_clean_looking() -> None:
    scores = SinusoidalTriggers(steps=120).scan(subject(Noisy(None)))
    assert scores.score < MIN_LEAD
    assert judged(scores)[0] == "clean-looking"


def test_on_large_images_it_looks_for_nothing_and_says_so() -> None:
    large = subject(Noisy(None), side=80)
    detector = SinusoidalTriggers().sized(large)
    scores = detector.scan(large)
    assert detector.passes(large) == 0
    assert scores.target is None
    assert scores.evidence == {"search": "not on images of more than 64x64 pixels"}
