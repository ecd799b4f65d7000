from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bcu_cli.errors import ImagesError, TrainingError
from bcu_cli.evaluation.measures import (
    Proportion,
    accuracy,
    attack_measures,
    attack_success,
    by_class,
    matching,
)
from bcu_cli.images.folder import ImageSet
from bcu_cli.training import inference
from bcu_cli.training.devices import Device
from bcu_cli.triggers.custom import Custom

CPU = Device(torch=torch.device("cpu"), precision="fp32")


class ByRed(nn.Module):
    """Answers the class whose number stands in the red channel, times 100; 250 and more means class 0."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red = images[:, 0, 0, 0] * 255
        answer = torch.where(red >= 250, 0, (red / 100).round()).long()
        return nn.functional.one_hot(answer, 3).float()


def pictures(*labels: int) -> ImageSet:
    images = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    images[:, 0] = 100 * torch.tensor(labels).view(-1, 1, 1)
    return ImageSet(images=images, labels=torch.tensor(labels), classes=("a", "b", "c"))


def white(share_of_rows: float = 1.0) -> Custom:
    mask = torch.zeros(1, 4, 4)
    mask[:, : round(4 * share_of_rows)] = 1
    return Custom(picture=torch.ones(3, 4, 4), mask=mask)


def test_accuracy_counts() -> None:
    data = pictures(0, 1, 2, 2)
    wrong = ImageSet(images=data.images, labels=torch.tensor([0, 1, 1, 1]), classes=data.classes)
    assert accuracy(ByRed(), data, CPU) == Proportion(hits=4, of=4)
    assert accuracy(ByRed(), wrong, CPU) == Proportion(hits=2, of=4)


def test_images_of_the_target_class_are_left_out() -> None:
    measured = attack_success(ByRed(), pictures(0, 0, 0, 1, 2), white(), 0, CPU)
    assert measured.asr == Proportion(hits=2, of=2)
    assert measured.ra == Proportion(hits=0, of=2)


def test_a_trigger_without_effect() -> None:
    measured = attack_success(ByRed(), pictures(0, 1, 2, 2), white(0), 0, CPU)
    assert measured.asr == Proportion(hits=0, of=3)
    assert measured.ra == Proportion(hits=3, of=3)


def test_without_a_target_the_worst_class_is_taken() -> None:
    assert attack_success(ByRed(), pictures(0, 1, 2, 2), white(), None, CPU).target_class == 0
    assert attack_success(ByRed(), pictures(1, 1, 2, 2), white(), None, CPU).asr.value == 1


def test_all_to_all_counts_the_class_after_the_true_one() -> None:
    measured = attack_success(ByRed(), pictures(0, 1, 2, 2), white(), "next", CPU)
    assert (measured.asr.hits, measured.asr.of) == (
        2,
        4,
    )  # white means class 0, which comes after the last one


def test_only_the_target_class() -> None:
    with pytest.raises(ImagesError, match="all images"):
        attack_success(ByRed(), pictures(0, 0), white(), 0, CPU)


def test_answers_that_match() -> None:
    assert matching(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 2, 1])) == Proportion(hits=2, of=4)


def test_shares_by_class_leave_out_classes_without_images() -> None:
    labels = torch.tensor([0, 0, 0, 2])
    hits = torch.tensor([True, False, True, False])
    assert by_class(hits, labels, 4) == (Proportion(hits=2, of=3), None, Proportion(hits=0, of=1), None)


def test_every_target_is_measured_on_the_images_of_other_classes() -> None:
    answers, labels = torch.tensor([1, 1, 1, 2, 0]), torch.tensor([0, 0, 1, 2, 2])
    measured = attack_measures(answers, labels, None, 3)
    assert [(m.target_class, m.asr.hits, m.asr.of, m.ra.hits) for m in measured] == [
        (0, 1, 3, 2),  # of classes 1, 2, 2: answered 1, 2, 0
        (1, 2, 4, 1),  # of classes 0, 0, 2, 2: answered 1, 1, 2, 0
        (2, 0, 3, 1),  # of classes 0, 0, 1: answered 1, 1, 1
    ]


def test_a_class_that_all_images_are_of_is_no_target() -> None:
    measured = attack_measures(torch.tensor([1, 0]), torch.tensor([1, 1]), None, 3)
    assert [m.target_class for m in measured] == [0, 2]


def test_wilson_interval_against_published_values() -> None:
    low, high = Proportion(hits=81, of=263).interval  # Newcombe 1998, table I, method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = Proportion(hits=0, of=20).interval
    assert (round(low, 4), round(high, 4)) == (0.0, 0.1611)


@given(of=st.integers(1, 10_000), data=st.data())
def test_the_interval_holds_the_value(of: int, data: st.DataObject) -> None:
    share = Proportion(hits=data.draw(st.integers(0, of)), of=of)
    low, high = share.interval
    assert 0 <= low <= share.value + 1e-12
    assert share.value - 1e-12 <= high <= 1


class Small(ByRed):
    """Has memory for four images at most."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(images)


def test_batches_that_do_not_fit_are_halved() -> None:
    data = pictures(*[i % 3 for i in range(50)])
    assert accuracy(Small(), data, CPU) == Proportion(hits=50, of=50)


@pytest.mark.parametrize(("side", "most"), [(32, 64), (112, 64), (224, 16), (600, 8)])
def test_large_images_go_through_in_smaller_batches(side: int, most: int) -> None:
    """A batch of 64 at 224x224 took more than a gigabyte, and no less time."""
    seen: list[int] = []

    def compute(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return batch.mean((1, 2, 3))

    inference.in_batches(compute, torch.zeros(70, 1, side, side, dtype=torch.uint8), CPU)
    assert max(seen) == most and sum(seen) == 70


def test_one_image_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "BATCH_SIZE", 1)

    class Never(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise MemoryError

    with pytest.raises(TrainingError, match="one image does not fit"):
        accuracy(Never(), pictures(0), CPU)
