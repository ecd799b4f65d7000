"""The copy of the objective in ``examples/ablation.py``, which has switches, against the method's."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bcu_cli.defenses import auto
from bcu_cli.defenses.adversarial import effort, objective, searching
from bcu_cli.defenses.adversarial.sinusoids import NUM_KINDS
from bcu_cli.evaluation.adversary import Adversary
from bcu_cli.models.new_classifier import new_classifier

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).parents[1] / "examples" / "ablation.py"


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script; what it replaces in the method is put back after the test."""
    spec = spec_from_file_location("ablation", SCRIPT)
    assert spec and spec.loader
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(auto, "training_objective", objective.training_objective)
    return script


def loss(method: Any, how: effort.Effort) -> float:
    """The loss of one step, with the same networks and the same random numbers every time."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    student, teacher = (new_classifier("resnet8", 4, images, seed=seed) for seed in (0, 1))
    student.train()
    teacher.eval()
    adversary = Adversary(range(4), (3, 16, 16), searching.LIMITS, seed=0)
    given: Any = (student, teacher, adversary, torch.ones(NUM_KINDS), how, {2})
    return method(*given)(torch.rand(24, 3, 16, 16), torch.arange(24), 0.5).item()


@pytest.mark.parametrize("how", [effort.USUAL, effort.LARGE])
def test_without_switches_it_is_the_method_s(ablation: ModuleType, how: effort.Effort) -> None:
    expected = loss(auto.training_objective, how)
    ablation._objective()
    assert loss(auto.training_objective, how) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("switch", ["own_statistics", "both_attacked", "all_logits"])
def test_each_switch_changes_it(ablation: ModuleType, switch: str) -> None:
    expected = loss(auto.training_objective, effort.USUAL)
    ablation._switch(**{switch: True})
    assert loss(auto.training_objective, effort.USUAL) != pytest.approx(expected, rel=1e-3)


def test_boxes_take_the_place_of_mixed_images(ablation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "mixup", objective.mixup)  # put back after the test
    expected = loss(objective.training_objective, effort.USUAL)
    ablation.WITHOUT["with boxes of images in place of mixed ones"]()
    assert abs(loss(objective.training_objective, effort.USUAL) - expected) > 1e-4
    images = torch.rand(3, 3, 8, 8)
    mixed = ablation._cutmix(images)
    assert ((mixed == images) | (mixed == images.roll(1, 0))).all()


def test_one_switch_leaves_another_as_it_is(ablation: ModuleType) -> None:
    ablation._switch(both_attacked=True)
    alone = loss(auto.training_objective, effort.USUAL)
    ablation._switch(own_statistics=True)
    both = loss(auto.training_objective, effort.USUAL)
    ablation._objective(own_statistics=True)
    assert len({alone, both, loss(auto.training_objective, effort.USUAL)}) == 3
