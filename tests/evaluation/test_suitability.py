"""Images and the answers to them: what is warned of, and what is not."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bcu_cli.errors import AnswersError
from bcu_cli.evaluation.suitability import ENOUGH, Suitability, suitability
from bcu_cli.models import Classifier
from bcu_cli.models.preprocessing import Preprocessing
from bcu_cli.training.devices import Device

CPU = Device(torch=torch.device("cpu"), precision="fp32")
CLASSES = 4


class ByRed(nn.Module):
    """Answers the class that the first byte of an image says, with logits of 0 and ``height``."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.height = height

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answer = (images[:, 0, 0, 0] * 255).round().long()
        return self.height * nn.functional.one_hot(answer, CLASSES).float()


def shown(answers: list[int], height: float = 9.0, **more: tuple[str, ...]) -> Suitability:
    images = torch.tensor(answers, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    how = Preprocessing(input_size=(3, 2, 2), mean=(0.0,) * 3, std=(1.0,) * 3, source="test")
    return suitability(Classifier(ByRed(height), how, CLASSES), images, CPU, **more)


def of(*counts: int, confidence: float = 1.0) -> Suitability:
    names = tuple(f"c{k}" for k in range(len(counts)))
    return Suitability(counts=counts, classes=names, median_confidence=confidence)


def test_all_of_one_class() -> None:
    found = shown([2] * ENOUGH, classes=("cat", "dog", "cow", "hen"))
    assert (found.counts, found.answered, found.effective_classes) == ((0, 0, ENOUGH, 0), 1, 1.0)
    (warning,) = found.warnings()
    assert "predicts only 1 of 4 classes" in warning
    assert "cat, dog, hen (about 225 of each)" in warning


def test_even_sure_and_many_is_nothing_to_warn_of() -> None:
    found = shown([0, 1, 2, 3] * (ENOUGH // CLASSES))
    assert found.effective_classes == pytest.approx(CLASSES)
    assert found.median_confidence == pytest.approx(exp(9) / (exp(9) + 3))
    assert found.warnings() == found.as_json()["warnings"] == []


def test_unsure_answers() -> None:
    found = shown([0, 1, 2, 3] * (ENOUGH // CLASSES), height=log(3))  # probabilities 3/6, 1/6, 1/6, 1/6
    (warning,) = found.warnings()
    assert "median confidence 0.50" in warning


def test_answers_that_are_probabilities_are_taken_as_they_are() -> None:
    assert (
        shown([0, 1, 2, 3], height=1.0).median_confidence == 1.0
    )  # one-hot: a softmax would make 0.48 of it


def test_answers_that_are_no_numbers() -> None:
    with pytest.raises(AnswersError, match="NaN"):
        shown([0, 1], height=float("nan"))


def test_few_pictures_and_how_many_more() -> None:
    (warning,) = of(100, 100, 100).warnings()
    assert warning.startswith("300 training images")
    assert "about 600 more" in warning
    assert of(500, 500).warnings() == []


def test_a_class_that_is_taken_for_nearly_everything() -> None:
    (warning,) = of(970, 10, 10, 10).warnings()
    assert "predicts c0 for 97% of these images" in warning
    assert "c1, c2, c3" in warning


def test_uneven_answers_always_name_what_to_add() -> None:
    (warning,) = of(550, *[50] * 9).warnings()  # no class is rarer than half of an even share
    assert "c1, c2, c3, c4, c5 and 4 more" in warning


def test_many_classes_are_not_all_named() -> None:
    (warning,) = of(*[0] * 90, *[100] * 10).warnings()
    assert "c0, c1, c2, c3, c4 and 85 more (about 9 of each)" in warning


def test_more_classes_than_pictures_are_no_reason_to_warn_of_classes() -> None:
    counts = torch.bincount(
        torch.randint(0, 1000, (ENOUGH,), generator=torch.Generator().manual_seed(0)), minlength=1000
    )
    assert of(*counts.tolist()).warnings() == []


@given(st.lists(st.integers(0, 500), min_size=2, max_size=30).filter(any))
def test_the_effective_number_lies_between_one_and_the_answered_classes(counts: list[int]) -> None:
    found = of(*counts)
    assert 1 - 1e-9 <= found.effective_classes <= found.answered + 1e-9
    assert of(*counts[::-1]).effective_classes == pytest.approx(found.effective_classes)
    rarest = found.as_json()["rarest_classes"]
    assert list(rarest.values()) == sorted(count for count in counts if count)[:5]
