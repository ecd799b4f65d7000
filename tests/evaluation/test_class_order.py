"""Whether labels and outputs seem to be in different orders."""

from __future__ import annotations

import pytest
import torch

from bcu_cli.evaluation.class_order import doubt_of_order

NAMES = ("0", "1", "10", "2")
LABELS = torch.arange(4).repeat_interleave(10)


@pytest.mark.parametrize(
    ("order", "doubted"),
    [
        ((0, 1, 2, 3), False),
        ((0, 1, 3, 2), True),  # "10" and "2", as text and as numbers
        ((3, 2, 1, 0), True),
        ((0, 0, 0, 0), False),  # one class for all
        ((1, 1, 2, 3), False),  # one class is mistaken for another
    ],
)
def test_the_order_is_doubted_where_classes_are_exchanged(order: tuple[int, ...], doubted: bool) -> None:
    answers = torch.tensor(order)[LABELS]
    answers[::10] = 0  # a tenth is wrong anyhow
    assert bool(doubt_of_order(answers, LABELS, NAMES)) is doubted


@pytest.mark.parametrize(("classes", "each"), [(2, 5), (2, 50), (3, 8), (4, 10), (10, 3), (100, 9)])
def test_a_network_that_guesses_is_not_doubted(classes: int, each: int) -> None:
    """In five of 200 draws at most; with two classes that is what an interval of 95 % lets through."""
    generator = torch.Generator().manual_seed(0)
    labels, names = torch.arange(classes).repeat_interleave(each), [str(label) for label in range(classes)]
    draws = [torch.randint(classes, labels.shape, generator=generator) for _ in range(200)]
    assert sum(bool(doubt_of_order(answers, labels, names)) for answers in draws) <= 5


def test_a_thousand_classes() -> None:
    labels, names = torch.arange(1000).repeat_interleave(10), [str(label) for label in range(1000)]
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert doubt_of_order(shuffled[labels], labels, names)
    assert not doubt_of_order(labels, labels, names)


def test_the_sentence_names_a_class() -> None:
    said = doubt_of_order(torch.tensor([0, 1, 3, 2])[LABELS], LABELS, NAMES)
    assert "images of 10 are predicted as output 3, which is taken for 2" in said
    assert "2 of 4 classes" in said
