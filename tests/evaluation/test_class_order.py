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


def test_a_bad_network_is_not_doubted() -> None:
    answers = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(0))
    assert not doubt_of_order(answers, LABELS, NAMES)


def test_the_sentence_names_a_class() -> None:
    said = doubt_of_order(torch.tensor([0, 1, 3, 2])[LABELS], LABELS, NAMES)
    assert "images of 10 are predicted as output 3, which is taken for 2" in said
    assert "2 of 4 classes" in said
