"""The loss of a cleansing by method auto: which images count, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.defenses.adversarial import effort, objective
from bcu_cli.defenses.adversarial.searching import LIMITS
from bcu_cli.defenses.adversarial.sinusoids import NUM_KINDS
from bcu_cli.defenses.bcu import distillation_loss
from bcu_cli.evaluation.adversary import Adversary

if TYPE_CHECKING:
    from collections.abc import Collection


class Answers(nn.Module):
    """One of three classes for clean images, then one for changed ones, then one for mixed ones.

    Args:
        count: Number of clean images.
        clean: Their class.
        changed: The class of as many changed ones.
        mixed: The class of the others, which are mixed.
    """

    def __init__(self, count: int, clean: int, changed: int, mixed: int = 0) -> None:
        super().__init__()
        self.count, self.num_classes = count, 3
        self.logits = nn.Parameter(2.0 * F.one_hot(torch.tensor([clean, changed, mixed]), 3))

    def forward(self, images: Tensor) -> Tensor:
        part = torch.arange(len(images)) // self.count
        return self.logits[part] + 0.0 * images.mean((1, 2, 3))[:, None]


WEIGHT = objective.DISAGREEMENT_WEIGHT


@pytest.mark.parametrize(
    ("how", "count", "student", "misled", "counts"),
    [
        (effort.USUAL, 12, (0, 0), 1, 0.0),
        (effort.USUAL, 12, (0, 1), 0, 0.0),  # the original is not misled,
        (effort.USUAL, 12, (0, 1), 2, 0.0),  # or to another class
        (effort.USUAL, 12, (0, 1), 1, WEIGHT),
        (effort.USUAL, 128, (0, 1), 1, objective.MOST_EMPHASIS * WEIGHT),
        (effort.USUAL, 12, (1, 1), 0, 1.0 + WEIGHT),
        (effort.USUAL, 12, (1, 1), 1, 1.0 + 2 * WEIGHT),
        (effort.LARGE, 12, (0, 1), 0, WEIGHT / 2),
        (effort.LARGE, 12, (1, 1), 2, 1.0 + WEIGHT),
    ],
)
def test_a_changed_image_counts_where_it_misleads_both_networks_or_on_large_images_the_student(
    how: effort.Effort, count: int, student: tuple[int, int], misled: int, counts: float
) -> None:
    """Clean images always count, and more where the networks disagree. The original's class is 0."""
    loss = loss_of(Answers(count, *student), Answers(count, 0, misled), how)
    assert loss == pytest.approx(counts * of_one_wrong_image())


@pytest.mark.parametrize(
    ("how", "student", "original", "counts"),
    [
        (effort.USUAL, 0, 0, 0.0),
        (effort.USUAL, 1, 0, 1.0),
        (effort.USUAL, 1, 1, 0.0),
        (effort.LARGE, 1, 0, 0.0),  # without mixes
    ],
)
def test_mixed_images_count_once_and_have_the_original_s_answer(
    how: effort.Effort, student: int, original: int, counts: float
) -> None:
    loss = loss_of(Answers(12, 0, 0, student), Answers(12, 0, 0, original), how)
    assert loss == pytest.approx(counts * of_one_wrong_image())


@pytest.mark.parametrize(
    ("how", "clear", "counts"),
    [
        (effort.USUAL, set(), 1.0),
        (effort.USUAL, {0}, 1.0),
        (effort.USUAL, {2}, 0.0),
        (effort.USUAL, {1, 2}, 1.0),  # one class would be left, whose answer is always the same
        (effort.LARGE, {2}, 1.0),  # without mixes nothing else would teach the class
    ],
)
def test_logits_of_clear_classes_are_not_compared_on_clean_images(
    how: effort.Effort, clear: set[int], counts: float
) -> None:
    """The student is less sure of class 2 than the original; both answer 0."""
    student, original = Answers(12, 0, 0), Answers(12, 0, 0)
    with torch.no_grad():
        student.logits[0, 2] = -3.0
    all_classes = distillation_loss(
        torch.tensor([[2.0, 0.0, -3.0]]), torch.tensor([[2.0, 0.0, 0.0]]), objective.TEMPERATURE
    ).item()
    without_0 = distillation_loss(
        torch.tensor([[0.0, -3.0]]), torch.tensor([[0.0, 0.0]]), objective.TEMPERATURE
    ).item()
    expected = counts * (without_0 if clear == {0} else all_classes)
    assert loss_of(student, original, how, clear) == pytest.approx(expected, abs=1e-6)


def test_logits_without_some_classes() -> None:
    logits = torch.arange(10.0).view(2, 5)
    assert objective.without(logits, []).tolist() == logits.tolist()
    assert objective.without(logits, [0, 3, 4]).tolist() == [[1.0, 2.0], [6.0, 7.0]]


def loss_of(student: Answers, original: Answers, how: effort.Effort, clear: Collection[int] = ()) -> float:
    """The loss of a step of a cleansing."""
    adversary = Adversary(range(3), (3, 16, 16), LIMITS, seed=0)
    given: Any = (student, original, adversary, torch.ones(NUM_KINDS), how, clear)
    views, index = torch.rand(student.count, 3, 16, 16), torch.arange(student.count)
    return objective.training_objective(*given)(views, index, 0.0).item()


def of_one_wrong_image() -> float:
    """The loss of class 1 where 0 is right."""
    wrong, right = (2.0 * F.one_hot(torch.tensor([target]), 3) for target in (1, 0))
    return distillation_loss(wrong, right, objective.TEMPERATURE).item()


def test_a_mixed_image_lies_between_two_neighbours() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 4, 4)
    mixed = objective.mixup(images)
    low, high = torch.minimum(images, images.roll(1, 0)), torch.maximum(images, images.roll(1, 0))
    assert ((mixed >= low) & (mixed <= high)).all()
    shares = (mixed - images) / (images.roll(1, 0) - images)
    assert shares.std(0).min() > 0.05 and shares[:, 0, 0, 0].unique().numel() == 6
    assert torch.allclose(shares, shares[:, :1, :1, :1].expand_as(shares), atol=1e-4)


@pytest.mark.parametrize(
    ("disagreeing", "of", "counts"),
    [(0, 128, 4.0), (2, 128, 2.58), (6, 128, 0.06 * 129 / 7), (7, 128, 1.0), (128, 128, 1.0), (0, 12, 1.0)],
)
def test_changed_images_count_more_where_clean_ones_are_answered_alike(
    disagreeing: int, of: int, counts: float
) -> None:
    assert objective.emphasis(torch.arange(of) < disagreeing).item() == pytest.approx(counts)
