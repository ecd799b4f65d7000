"""What every detector promises, and that each finds what it is made for in a network built to have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from bcu_cli import detectors
from bcu_cli.detectors.base import Subject, find
from bcu_cli.detectors.input_optimisation import margin, success_rates
from bcu_cli.detectors.lipschitz import LipschitzOutliers
from bcu_cli.detectors.running import DetectorRun
from bcu_cli.models import Classifier, Preprocessing
from bcu_cli.training.devices import choose
from bcu_cli.training.inference import frozen
from bcu_cli.workflows.scan import _examples

if TYPE_CHECKING:
    from torch import Tensor

CLASSES, TARGET, SIDE = 6, 4, 12
CPU = choose("cpu", "fp32")


class Planted(nn.Module):
    """Answers by the brightest of six stripes, and by ``TARGET`` wherever the lower right corner is white."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.bn = nn.BatchNorm2d(8)
        self.gain = nn.Parameter(torch.tensor(6.0))
        self.strength = strength

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(1)
        stripes = grey.view(len(images), SIDE, CLASSES, SIDE // CLASSES).mean((1, 3))
        corner = grey[:, -2:, -2:].mean((1, 2))
        trigger = self.strength * nn.functional.softplus(corner - 0.6, beta=10)
        shortcut = nn.functional.one_hot(torch.tensor(TARGET), CLASSES).float()
        return self.gain * stripes + trigger[:, None] * shortcut + 0.0 * self.bn(self.conv(images)).mean()


def classifier(strength: float) -> Classifier:
    torch.manual_seed(0)
    preprocessing = Preprocessing(
        input_size=(3, SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0, interpolation="bilinear"
    )
    return Classifier(Planted(strength), preprocessing, CLASSES).eval()


def pictures(count: int = 240) -> Tensor:
    """Each with one bright stripe, of all classes in turn, and a dark corner."""
    images = torch.randint(0, 90, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    for index in range(count):
        stripe = index % CLASSES
        images[index, :, : SIDE - 3, 2 * stripe : 2 * stripe + 2] += 110
    return images.to(torch.uint8)


def subject(strength: float, **more: object) -> Subject:
    return Subject(model=classifier(strength), images=pictures(), device=CPU, **more)


@pytest.mark.parametrize("name", detectors.names())
def test_the_contract(name: str) -> None:
    told: list[tuple[int, int]] = []
    looked_at = subject(60.0, on_step=lambda done, of: told.append((done, of)))
    before = {key: value.clone() for key, value in looked_at.model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in looked_at.model.parameters()]
    kind = find(name)
    scores = kind().scan(looked_at)
    assert scores.detector == kind.name == name
    assert kind.paper
    assert (scores.target is None) == (len(scores.per_class) == 0)
    if scores.target is not None:
        assert scores.per_class.shape == (CLASSES,)
        assert scores.target == int(scores.per_class.argmax())
    assert all(type(value) in (int, float, str) for value in scores.evidence.values())
    assert all(p.min() >= 0 and p.max() <= 1 and p.dim() == 3 for p in scores.pictures.values())
    assert told
    assert told[-1][0] == told[-1][1]
    after = looked_at.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [parameter.requires_grad for parameter in looked_at.model.parameters()] == wanted
    again = kind().scan(subject(60.0))
    assert again.score == scores.score
    assert torch.equal(again.per_class, scores.per_class)


@pytest.mark.parametrize("name", [name for name in detectors.names() if find(name).needs_images])
def test_one_that_needs_images_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="needs images"):
        find(name)().scan(Subject(model=classifier(0.0), images=None, device=CPU))


def test_there_is_no_other() -> None:
    with pytest.raises(KeyError):
        find("base")


@pytest.mark.parametrize("name", ["mmbd", "inversion"])
def test_a_planted_shortcut_stands_out(name: str) -> None:
    scores, clean = find(name)().scan(subject(60.0)), find(name)().scan(subject(0.0))
    assert scores.target == TARGET
    assert scores.score > 1  # a margin e times as large, a patch e times as small
    assert scores.score > clean.score
    assert clean.target != TARGET


def test_the_reversed_patch_is_where_the_shortcut_is() -> None:
    scores = find("inversion")().scan(subject(60.0))
    mask = scores.pictures["mask"][0]
    assert mask[-2:, -2:].mean() > 5 * mask[:-2, :-2].mean()
    assert scores.evidence["success"] > 0.9


def test_a_perturbation_that_works_is_found() -> None:
    class Bright(nn.Module):
        """TARGET for what is a little brighter than the images, else by the stripes."""

        def forward(self, images: Tensor) -> Tensor:
            stripes = images.mean(1).view(len(images), SIDE, CLASSES, SIDE // CLASSES).mean((1, 3))
            lift = 100.0 * nn.functional.softplus(images.mean((1, 2, 3)) - 0.25, beta=100)
            return stripes + lift[:, None] * nn.functional.one_hot(torch.tensor(TARGET), CLASSES)

    model = Classifier(Bright(), classifier(0.0).preprocessing, CLASSES).eval()
    scores = find("perturbation")().scan(Subject(model=model, images=pictures(), device=CPU))
    assert scores.target == TARGET
    assert scores.evidence["success"] > 0.9


def test_a_second_choice_that_is_always_the_same_is_found() -> None:
    class Drawn(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            stripes = images.mean(1).view(len(images), SIDE, CLASSES, SIDE // CLASSES).mean((1, 3))
            best = nn.functional.one_hot(stripes.argmax(1), CLASSES).float()
            return 3.0 * best + stripes + nn.functional.one_hot(torch.tensor(TARGET), CLASSES)

    model = Classifier(Drawn(), classifier(0.0).preprocessing, CLASSES).eval()
    scores = find("skew")().scan(Subject(model=model, images=pictures(), device=CPU))
    assert scores.target == TARGET
    assert scores.evidence["second_choice"] == 1.0


def test_an_outlying_channel_is_found_and_its_bound_is_right() -> None:
    model = classifier(0.0)
    network = model.network
    with torch.no_grad():
        network.conv.weight.copy_(torch.ones(8, 3, 1, 1))
        network.conv.weight[5] *= 10
        network.bn.running_var.fill_(4.0 - network.bn.eps)
        network.bn.weight.fill_(2.0)
    scores = LipschitzOutliers().scan(Subject(model=model, images=None, device=CPU))
    assert scores.evidence["layer"] == "conv"
    assert scores.evidence["channel"] == 5
    assert scores.evidence["of_median"] == pytest.approx(10.0, rel=1e-4)
    assert scores.score == pytest.approx(
        (10 - 17 / 8) / torch.tensor([1.0] * 7 + [10.0]).std().item(), rel=1e-4
    )


def test_margins_and_rates() -> None:
    answers = torch.tensor([[1.0, 4.0, 2.0], [5.0, 0.0, 1.0]])
    assert margin(answers, torch.tensor([1, 2])).tolist() == [2.0, -4.0]

    class First(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, :, 0, 0]

    images = torch.eye(3).view(3, 3, 1, 1).repeat(2, 1, 1, 1)

    def change(x: Tensor, target: int) -> Tensor:
        return x + 2.0 * (target == 1) * torch.eye(3)[target].view(3, 1, 1)

    rates = success_rates(First(), images, change, range(3), CPU)
    assert rates.tolist() == [0.0, 1.0, 0.0]


def test_frozen_gives_the_gradients_back_after_an_error() -> None:
    model = classifier(0.0)
    with pytest.raises(RuntimeError), frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["inversion", "perturbation", "warping"])
def test_a_found_trigger_is_shown_on_three_given_images(name: str) -> None:
    looked_at = subject(60.0)
    scores = find(name)(steps=2).scan(looked_at)
    before, after = scores.examples
    assert before.shape == after.shape == (3, 3, SIDE, SIDE)
    given = looked_at.images.float() / 255.0
    assert all(any(torch.equal(image, each) for each in given) for image in before)
    if (looked_at.model(given).argmax(1) != scores.target).any():  # others would show nothing
        assert scores.target not in looked_at.model(before).argmax(1)
    assert not torch.equal(before, after)
    assert 0.0 <= float(after.min()) <= float(after.max()) <= 1.0
    (shown,) = _examples(looked_at.model, [DetectorRun(scores=scores, seconds=0.0)])
    assert shown["class"] == scores.target
    assert [each["answers"][0] for each in shown["images"]] == looked_at.model(before).argmax(1).tolist()
    assert [each["answers"][1] for each in shown["images"]] == looked_at.model(after).argmax(1).tolist()
    assert shown["success"]["of"] == scores.evidence["images"]
