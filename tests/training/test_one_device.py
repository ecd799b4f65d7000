"""A step of every method, attack and detector on a device without values.

On the device ``meta`` what reads a value fails, so a step that passes here waits for nothing on a GPU. No
tensor is left on another device, either. What is drawn on the CPU has values, as beside a GPU.
(``FakeTensorMode`` takes those too, and then the counts that an adversary draws on the CPU cannot be read.)
Steps run backward, and with the optimizer.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from defending import META, OneDevice, pictures, quick, small

from bcu_cli import attacks, defenses, detectors
from bcu_cli.attacks.base import AttackOptions
from bcu_cli.attacks.base import find as find_attack
from bcu_cli.attacks.lc import LabelConsistent
from bcu_cli.defenses.adversarial import sinusoids
from bcu_cli.defenses.adversarial.searching import LIMITS, Weaknesses
from bcu_cli.defenses.auto import Auto
from bcu_cli.defenses.base import Defense
from bcu_cli.defenses.base import find as find_defense
from bcu_cli.defenses.fp import FinePruning
from bcu_cli.detectors.base import Subject
from bcu_cli.detectors.base import find as find_detector
from bcu_cli.images.augmentation import Augmentation
from bcu_cli.training.options import TrainingOptions
from bcu_cli.triggers import base as triggers

if TYPE_CHECKING:
    from bcu_cli.training.loop import Stage


def step(stage: Stage) -> None:
    """The first step of a stage."""
    training = stage.training
    with OneDevice():
        training._step(training._batch(0, 0))


def on_meta(name: str) -> Defense[Any]:
    how = quick(name, flip=False) if hasattr(find_defense(name).Options, "flip") else quick(name)
    held_out = pictures(count=16, seed=1)
    return find_defense(name)(small(), pictures(), how, device=META, held_out=held_out)


@pytest.mark.parametrize("name", [name for name in defenses.names() if name not in {"auto", "clp"}])
def test_every_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FinePruning, "_prune", lambda self, layers: [(layers[0], torch.tensor([1]))])
    stages = 0
    for stage in on_meta(name).stages():
        step(stage)
        stages += 1
        if stages == (2 if name in {"mcr", "nad"} else 1):  # what follows the last stage reads its weights
            break
    assert stages


def test_method_auto() -> None:
    auto = on_meta("auto")
    assert isinstance(auto, Auto)
    auto.teacher.to("meta")
    adversary = auto.searcher.adversary(LIMITS, seed=0)
    weaknesses = Weaknesses(adversary, torch.ones(sinusoids.NUM_KINDS, device="meta"))
    step(auto.searcher.stage(adversary, auto.teacher, "looking for weaknesses"))
    for level, student in enumerate([auto.student, deepcopy(auto.student)]):
        step(auto._cleansing(student, auto.teacher, weaknesses, level, "cleansing"))


@pytest.mark.parametrize("name", [*attacks.names(), "none"])
def test_every_attack(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LabelConsistent, "perturb", lambda _, images, labels: images)  # reads images back
    kind = find_attack(name)
    trigger = triggers.make(kind.trigger_name, (3, 8, 8)) if kind.trigger_name else None
    plain = Augmentation(crop_padding=1, flip=False)
    how = TrainingOptions(epochs=1, batch_size=32, optimizer="adamw", augmentation=plain)
    options = AttackOptions(training=how, poison_rate=0.5)
    stages = 0
    for stage in kind(small(), pictures(), trigger, options, device=META).stages():
        step(stage)  # before the next one is made, as a run does
        stages += 1
    assert stages


class _Stop(Exception):  # noqa: N818 - ends a scan
    pass


@pytest.mark.parametrize("name", [name for name in detectors.names() if find_detector(name).searches])
def test_every_detector_that_optimises(name: str) -> None:
    def stop(done: int, of: int) -> None:
        raise _Stop

    model = small().to("meta")
    subject = Subject(model=model, images=pictures().images, device=META, on_step=stop)
    with pytest.raises(_Stop), OneDevice():
        find_detector(name)().scan(subject)


def test_a_tensor_that_is_left_behind_is_found() -> None:
    """Else the tests above could not fail."""
    (stage,) = on_meta("ft").stages()
    learn = stage.training.objective
    weights = torch.ones(4)
    stage.training.objective = lambda *given: learn(*given) + (stage.training.model(given[0]) * weights).sum()
    with pytest.raises((AssertionError, RuntimeError), match=r"device|takes tensors"):
        step(stage)
