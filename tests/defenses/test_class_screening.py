"""The classes that triggers are searched for, where there are too many to search all."""

from __future__ import annotations

import pytest
import torch
from defending import CPU, classifier
from helpers import lessen_effort
from many_classes import CLASSES, TARGET, Tinted
from torch import nn

from bcu_cli.defenses.auto import Auto, AutoOptions
from bcu_cli.evaluation import class_screening
from bcu_cli.images.folder import ImageSet, hold_out

SHAPE = (3, 16, 16)


def screened(model: nn.Module, classes: int) -> tuple[Auto, list[str]]:
    """A method after the choice of classes, and the titles of the stages that took."""
    images = torch.randint(0, 256, (200, *SHAPE), generator=torch.Generator().manual_seed(1))
    data = ImageSet(images=images.to(torch.uint8))
    used, held_out = hold_out(data, 0.25, most=1000, generator=torch.Generator().manual_seed(0))
    network = classifier(model, side=SHAPE[1], classes=classes)
    method = Auto(network, used, AutoOptions(epochs=1, batch_size=64), device=CPU, held_out=held_out)
    titles = []
    for stage in method.searcher.choose_classes():
        titles.append(stage.title)
        stage.training.run()
    return method, titles


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_screening, "MOST_CLASSES", 12)
    monkeypatch.setattr(class_screening, "RANDOM_CLASSES", 6)
    lessen_effort(monkeypatch, search_steps=30)


@pytest.mark.usefixtures("few")
def test_the_target_of_a_backdoor_is_among_the_few() -> None:
    method, titles = screened(Tinted(), CLASSES)
    assert titles == ["screening classes"]
    assert len(set(method.searcher.classes)) == 12
    assert TARGET in method.searcher.classes
    assert (
        len([each for each in method.searcher.classes if each >= 8 and each != TARGET]) >= 3
    )  # to compare with


@pytest.mark.usefixtures("few")
def test_few_classes_are_all_searched() -> None:
    method, titles = screened(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 12)), 12)
    assert (titles, method.searcher.classes) == ([], list(range(12)))


def test_the_classes_that_each_kind_reaches_most_are_chosen_and_random_ones_added() -> None:
    """The second kind reaches every class, so by its success alone it would fill all places."""
    success = torch.zeros(class_screening.STARTS, 3, CLASSES)
    success[0, 0, 50], success[1, 2, 60] = 0.3, 0.2
    success[:, 1] = torch.linspace(0.5, 1.0, CLASSES)
    ranked, how = success.amax(0), {"most": 12, "controls": 6}
    chosen = class_screening.candidates(ranked, seed=0, **how)
    assert {50, 60, CLASSES - 1, CLASSES - 2} <= set(chosen)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 12
    assert chosen == class_screening.candidates(ranked, seed=0, **how)
    assert chosen != class_screening.candidates(ranked, seed=1, **how)
