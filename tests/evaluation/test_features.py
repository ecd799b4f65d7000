from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import hostile
import pytest
import torch
from defending import CPU, Setting, backdoored_setting, classifier, pictures, small
from hypothesis import given
from hypothesis import strategies as st
from scripted import script_network
from torch import Tensor, nn

from bcu_cli.checkpoints import read
from bcu_cli.errors import AnswersError, ArchitectureError
from bcu_cli.evaluation.features import Features, balanced, last_linear, of_sample, penultimate
from bcu_cli.models import load

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def setting() -> Setting:
    return backdoored_setting()


@pytest.fixture(scope="module")
def features(setting: Setting) -> Features:
    return of_sample(setting.model, setting.test, setting.trigger, CPU, what="it")


def test_the_last_layer_makes_the_logits_of_them(setting: Setting) -> None:
    layer = last_linear(setting.model, setting.test.images[:2], CPU, what="it")
    found = penultimate(setting.model, layer, setting.test.images, CPU)
    assert found.shape == (len(setting.test), layer.in_features)
    with torch.no_grad():
        logits = setting.model(setting.test.images.float() / 255.0)
        assert torch.allclose(found @ layer.weight.T + layer.bias, logits, atol=1e-4)


def test_triggered_ones_are_those_of_the_triggered_images(setting: Setting, features: Features) -> None:
    layer = last_linear(setting.model, setting.test.images[:2], CPU, what="it")
    triggered = setting.trigger.apply_to_bytes(setting.test.images)
    assert torch.equal(features.triggered, penultimate(setting.model, layer, triggered, CPU))
    assert torch.equal(features.labels, setting.test.labels)  # all 128 images are in the sample


def test_a_backdoored_network_puts_triggered_images_together(features: Features) -> None:
    others = features.labels != 0
    triggered = features.triggered[others]
    centroids = torch.stack([features.clean[features.labels == i].mean(0) for i in range(8)])
    apart = torch.pdist(centroids)
    from_own = (triggered - triggered.mean(0)).norm(dim=1)
    assert from_own.mean() < apart.min()
    from_class = (triggered - centroids[features.labels[others]]).norm(dim=1)
    clean = features.clean[others] - centroids[features.labels[others]]
    assert (clean.norm(dim=1) < from_class).float().mean() > 0.95  # the trigger takes them away


def test_the_model_is_left_as_it_was(setting: Setting) -> None:
    of_sample(setting.model, setting.test, None, CPU, what="it")
    assert not any(m._forward_pre_hooks for m in setting.model.modules())


class Heads(nn.Module):
    """Two heads whose mean is the answer, as in a distilled vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(192, 4), nn.Linear(192, 4)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return (self.one(flat) + self.other(flat.flip(1))) / 2


class Twice(nn.Module):
    """One layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 192)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.layer(images.flatten(1)))


REFUSED = {
    "a convolution": (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), "does not end in a linear layer"),
    "no weights": (nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), "does not end in a linear layer"),
    "places": (nn.Sequential(nn.Linear(8, 4), nn.Flatten(2), nn.Flatten()), "does not end in a linear"),
    "two heads": (Heads(), "do not depend on its last linear layer alone"),
    "twice": (Twice(), "do not depend on its last linear layer alone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_without_such_a_layer_is_refused(case: str) -> None:
    network, message = REFUSED[case]
    model = classifier(network)
    model.num_classes = 0  # whatever number
    with pytest.raises(ArchitectureError, match=f"bad.onnx.* {message}") as caught:
        of_sample(model, pictures(), None, CPU, what="what bad.onnx")
    assert "--tsne" in caught.value.hint


def test_torchscript_has_those_of_the_network_itself() -> None:
    plain = small()
    script = classifier(script_network(plain.network, torch.zeros(2, 3, 8, 8)))
    one, other = (of_sample(model, pictures(), None, CPU, what="it") for model in (plain, script))
    assert torch.allclose(one.clean, other.clean, atol=1e-5)


def test_a_graph_of_onnx_has_them(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(hostile.onnx_of(hostile.Small().state_dict()))
    model = load(read(tmp_path / "m.onnx"), mean=(0.5,), std=(0.5,)).classifier
    data = pictures(model.preprocessing.input_size[1])
    layer = last_linear(model, data.images[:2], CPU, what="it")
    with torch.no_grad():
        found = layer(penultimate(model, layer, data.images, CPU))
        assert torch.allclose(found, model(data.images.float() / 255.0), atol=1e-5)


def test_what_is_done_to_the_logits_afterwards_does_not_matter() -> None:
    plain = small()
    more = copy.deepcopy(plain)
    more.network.append(nn.LogSoftmax(1))
    one, other = (of_sample(model, pictures(), None, CPU, what="it") for model in (plain, more))
    assert torch.equal(one.clean, other.clean)
    assert one.triggered is None


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = small()
    nn.init.constant_(model.network[0].weight, float("nan"))
    with pytest.raises(AnswersError, match="NaN or infinite"):
        of_sample(model, pictures(), None, CPU, what="it")


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=60).map(torch.tensor), at_most=st.integers(1, 80)
)
def test_a_sample_has_as_many_of_each_class_as_there_are(labels: Tensor, at_most: int) -> None:
    chosen = balanced(labels, at_most)
    assert torch.equal(chosen, chosen.unique())
    assert len(chosen) <= at_most
    counts = torch.bincount(labels, minlength=7)
    classes = int((counts > 0).sum())
    if at_most >= classes:
        expected = counts.clamp(max=at_most // classes)
        assert torch.equal(torch.bincount(labels[chosen], minlength=7), expected)


def test_a_sample_is_spread_over_its_class() -> None:
    assert balanced(torch.zeros(100, dtype=torch.int64), 4).tolist() == [0, 25, 50, 75]
