"""What every defense promises, whatever it does."""

from __future__ import annotations

import copy
import sys
from dataclasses import fields, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from defending import CPU, classifier, defense, pictures, quick, run, small
from scripted import script_network
from torch import nn

from bcu_cli import defenses
from bcu_cli.defenses.base import Defense, find
from bcu_cli.errors import ArchitectureError, UsageError
from bcu_cli.models import build
from bcu_cli.training.loop import Interrupted

contract = pytest.mark.parametrize("name", defenses.names())
pytestmark = pytest.mark.usefixtures("short_search")
LABELLED = [name for name in defenses.names() if find(name).needs_labels]
PRUNING = ["anp", "clp", "fp"]


def test_all_that_were_promised_are_there() -> None:
    assert defenses.names() == ("anp", "auto", "bcu", "clp", "fp", "ft", "i-bau", "mcr", "nad")
    assert {name for name in defenses.names() if not find(name).needs_images} == {"clp"}
    assert set(defenses.names()) - set(LABELLED) == {"auto", "bcu", "clp"}


def test_there_is_no_other() -> None:
    with pytest.raises(UsageError, match="no method called base"):
        find("base")


def test_a_helper_that_is_not_named_as_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcu_cli.defenses.nothing", ModuleType("bcu_cli.defenses.nothing"))
    monkeypatch.setattr(defenses, "names", lambda: ("nothing",))
    with pytest.raises(TypeError, match="nothing defines no defense: name it in"):
        find("nothing")


@contract
def test_the_result_takes_the_place_of_the_original(name: str) -> None:
    kind, teacher = find(name), small()
    assert kind.name == name
    assert kind.paper
    before = copy.deepcopy(teacher.state_dict())
    cleansing = defense(name, teacher)
    run(cleansing)
    after = cleansing.student.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
        k: (v.shape, v.dtype) for k, v in before.items()
    }
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert any(not torch.equal(before[key], value) for key, value in after.items())
    assert not any(module._forward_hooks for module in cleansing.student.modules())
    assert all(value.isfinite().all() for value in after.values())


@contract
def test_a_seed_decides_everything(name: str) -> None:
    first, again = defense(name), defense(name)
    run(first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)  # what was drawn before plays no part
        run(again)
    states = [each.student.state_dict() for each in (first, again)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert first.details() == again.details()


@contract
def test_an_interrupted_run_goes_on_to_the_same_end(name: str) -> None:
    whole = defense(name)
    run(whole)
    stopped, states = defense(name), []
    stages = len(list(_steps(defense(name))))
    for number, stage in enumerate(_steps(stopped), start=1):
        if number == stages:
            with pytest.raises(Interrupted):
                stage.training.run(on_step=_stop)
        else:
            stage.training.run()
        states.append(copy.deepcopy(stage.training.state()))
    resumed = defense(name)
    for number, stage in enumerate(resumed.stages()):
        if number < len(states):
            stage.training.restore(states[number])
        stage.training.run()
    expected = whole.student.state_dict()
    assert all(torch.equal(expected[key], value) for key, value in resumed.student.state_dict().items())


def _steps(cleansing: Defense[Any]) -> Any:
    return cleansing.stages()


def _stop() -> None:
    raise Interrupted


@contract
def test_its_speed_can_be_told_when_it_is_done(name: str) -> None:
    cleansing, stages = defense(name), []
    for stage in cleansing.stages():
        stage.training.run()
        stages.append(stage)
    before = copy.deepcopy(cleansing.student.state_dict())
    assert all(stage.training.throughput().flops_per_image > 0 for stage in stages)
    assert all(torch.equal(before[key], value) for key, value in cleansing.student.state_dict().items())


@contract
def test_options_that_are_no_numbers_are_refused(name: str) -> None:
    options = find(name).Options()
    numeric = [field.name for field in fields(options) if isinstance(getattr(options, field.name), float)]
    for field in numeric:
        with pytest.raises(UsageError):
            replace(options, **{field: float("nan")})


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("anp", {"epsilon": -0.1}),
        ("anp", {"alpha": 1.5}),
        ("anp", {"threshold": 2.0}),
        ("anp", {"steps": 0}),
        ("clp", {"u": 0.0}),
        ("fp", {"layers": 0}),
        ("fp", {"accuracy_drop": 1.0}),
        ("i-bau", {"radius": 0.0}),
        ("i-bau", {"inner_steps": 0}),
        ("i-bau", {"fixed_point_steps": -1}),
        ("mcr", {"t": 1.1}),
        ("mcr", {"end_epochs": 0}),
        ("nad", {"beta": -1.0}),
        ("nad", {"teacher_epochs": 0}),
    ],
)
def test_settings_that_make_no_sense(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        quick(name, **setting)


@pytest.mark.parametrize("name", LABELLED)
def test_one_that_needs_labels_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="needs labels"):
        find(name)(small(), replace(pictures(), labels=None), quick(name), device=CPU)


@pytest.mark.parametrize("name", PRUNING)
@pytest.mark.parametrize("arch", ["norm-free", "wrn16_1"])
def test_pruning_handles_networks_without_norms_and_with_pre_activation(name: str, arch: str) -> None:
    model = small(norms=False) if arch == "norm-free" else classifier(build(arch, num_classes=4), side=16)
    cleansing = defense(name, model)
    run(cleansing)
    layers = cleansing.details()["pruned"]
    assert sum(len(layer["pruned"]) for layer in layers) > 0
    if name != "fp":
        assert len(layers) == (2 if arch == "norm-free" else 15)


@pytest.mark.parametrize("name", [*PRUNING, "nad"])
def test_a_network_that_a_method_cannot_handle_is_refused(name: str) -> None:
    linear = classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4)))
    with pytest.raises(ArchitectureError, match=r"nothing to prune|no feature maps"):
        run(defense(name, linear))


@contract
def test_torchscript_is_cleansed(name: str) -> None:
    script = classifier(script_network(small().network, torch.zeros(2, 3, 8, 8)))
    before = copy.deepcopy(script.state_dict())
    if name == "mcr":
        with pytest.raises(ArchitectureError, match="TorchScript"):
            defense(name, script)
        return
    cleansing = defense(name, script)
    run(cleansing)
    after = cleansing.student.state_dict()
    assert any(not torch.equal(before[key], value) for key, value in after.items())
