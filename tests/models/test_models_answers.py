"""Answers that make no sense, and networks that answer an image by what stands beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from bcu_cli.errors import AnswersError
from bcu_cli.evaluation.measures import accuracy, agreement
from bcu_cli.images.folder import ImageSet
from bcu_cli.models import Classifier
from bcu_cli.models.classifier import refuse_dependence
from bcu_cli.models.preprocessing import Preprocessing, check_normalisation
from bcu_cli.training.devices import Device
from bcu_cli.training.inference import in_batches, predict

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = Device(torch=torch.device("cpu"), precision="fp32")
IMAGES = torch.randint(0, 256, (70, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PLAIN = Preprocessing(input_size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


def right(images: Tensor) -> Tensor:
    """Logits ``[N, 4]`` that make sense."""
    return images.flatten(1)[:, :4]


class Answering(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, images: Tensor) -> Any:
        return self.change(right(images))


def named(change: Callable[[Tensor], Any]) -> Classifier:
    return Classifier(Answering(change), PLAIN, 4, name="bad.onnx").eval()


def with_one(value: float) -> Callable[[Tensor], Tensor]:
    """Logits among which one, of the last image alone, is another number."""

    def change(logits: Tensor) -> Tensor:
        changed = logits.clone()
        changed[-1, 2] = value
        return changed

    return change


WITHOUT_SENSE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "one row": (lambda x: x[:1], "not a row of logits for each"),
    "a row too many": (lambda x: torch.cat([x, x[:1]]), "not a row of logits for each"),
    "places": (lambda x: x[:, :, None], "not a row of logits for each"),
    "a number": (lambda x: x.sum(), "not a row of logits for each"),
    "complex": (lambda x: x.to(torch.complex64), "complex64 numbers"),
    "integers": (lambda x: (255 * x).long(), "int64 numbers"),
    "booleans": (lambda x: x > 0.5, "bool numbers"),
    "three classes": (lambda x: x[:, :3], "3 logits for an image of 4 classes"),
    "a tuple": (lambda x: (x[0], x[:, 0]), "returns a tuple"),
    "a list": (lambda x: [x[:1]], "returns a list"),
    "nothing": (lambda x: None, "returns a NoneType"),
    "NaN": (with_one(math.nan), "NaN or infinite"),
    "infinity": (with_one(math.inf), "NaN or infinite"),
    "less than all": (with_one(-math.inf), "NaN or infinite"),
}


@pytest.mark.parametrize("case", WITHOUT_SENSE)
def test_answers_without_sense_are_an_error_that_names_the_model(case: str) -> None:
    change, message = WITHOUT_SENSE[case]
    model, labels = named(change), torch.zeros(len(IMAGES), dtype=torch.int64)
    for measure in (
        lambda: predict(model, IMAGES, CPU),
        lambda: accuracy(model, ImageSet(images=IMAGES, labels=labels), CPU),
        lambda: agreement(model, labels, IMAGES, CPU),
        lambda: in_batches(lambda batch: model(batch).softmax(1), IMAGES, CPU, network=model),
    ):
        if case in {"infinity", "less than all"} and measure.__code__.co_names[0] == "in_batches":
            continue  # what a softmax makes of them may be finite
        with pytest.raises(AnswersError, match=f"^bad.onnx .*{message}"):
            measure()


def test_answers_that_make_sense_are_measured() -> None:
    model = named(lambda x: x)
    assert torch.equal(predict(model, IMAGES, CPU), right(IMAGES).argmax(1))
    assert torch.equal(named(lambda x: x.double())(IMAGES / 255.0), right(IMAGES / 255.0).double())


def test_auxiliary_logits_are_left_out_in_training() -> None:
    model = named(lambda x: (x, 2 * x))
    assert torch.equal(model.train()(IMAGES / 255.0), right(IMAGES / 255.0))


def test_a_network_whose_answers_depend_on_the_batch_is_refused() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = right(images)
    refuse_dependence(logits[:1] * (1 + 1e-4), logits, "x")
    by_batch = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(AnswersError, match=r"^bad.onnx: its answers depend on the batch"):
        refuse_dependence(logits[:1], by_batch(logits), "bad.onnx")
    with pytest.raises(AnswersError, match="NaN"):
        refuse_dependence(logits[:1], with_one(math.nan)(logits), "bad.onnx")


@pytest.mark.parametrize("values", [((0.5,), (1e-300,)), ((0.5,), (1e-5,)), ((1e30,), (1.0,))])
def test_a_normalisation_that_no_pixels_have_is_refused(values: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"is beyond|is not from"):
        check_normalisation(*values)
    check_normalisation((127.5,), (1 / 255,))
