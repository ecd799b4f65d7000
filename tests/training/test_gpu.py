"""A step of every method on a CUDA device: it waits for nothing, and computes what the CPU does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from defending import pictures, quick, small

from bcu_cli import attacks, defenses, detectors
from bcu_cli.attacks.base import AttackOptions
from bcu_cli.attacks.base import find as find_attack
from bcu_cli.defenses.base import find as find_defense
from bcu_cli.detectors.base import Subject
from bcu_cli.detectors.base import find as find_detector
from bcu_cli.images.augmentation import NO_AUGMENTATION
from bcu_cli.training.devices import Device, choose
from bcu_cli.training.options import TrainingOptions
from bcu_cli.triggers import base as triggers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bcu_cli.training.loop import Stage

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact")]
CPU = Device(torch=torch.device("cpu"), precision="fp32")


@pytest.fixture
def exact() -> Iterator[None]:
    """Products in full float32, as on the CPU."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def gpu(precision: str = "fp32") -> Device:
    return choose("cuda", precision)


def stages_of_defense(name: str, device: Device) -> Iterator[Stage]:
    held_out = pictures(count=16, seed=1)
    kind = find_defense(name)
    return kind(small(), pictures(), quick(name), device=device, held_out=held_out).stages()


def stages_of_attack(name: str, device: Device) -> Iterator[Stage]:
    kind = find_attack(name)
    trigger = triggers.make(kind.trigger_name, (3, 8, 8)) if kind.trigger_name else None
    how = TrainingOptions(epochs=2, batch_size=32, learning_rate=0.01, augmentation=NO_AUGMENTATION)
    options = AttackOptions(training=how, poison_rate=0.5)
    return kind(small(), pictures(), trigger, options, device=device).stages()


def run_without_waiting(stages: Iterator[Stage]) -> int:
    """Run all stages; after the first step of each, a step that waits for the device is an error."""
    steps = 0
    for stage in stages:
        training = stage.training
        training._step(training._batch(0, 0))  # warms up: libraries wait when they are first used
        torch.cuda.set_sync_debug_mode("error")
        try:
            training._step(training._batch(0, 0))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        training.run()
        steps += 1
    return steps


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in defenses.names() if name != "clp"])
def test_a_step_of_a_method_waits_for_nothing(name: str, precision: str) -> None:
    assert run_without_waiting(stages_of_defense(name, gpu(precision)))


@pytest.mark.parametrize("name", [*attacks.names(), "none"])
def test_a_step_of_an_attack_waits_for_nothing(name: str) -> None:
    assert run_without_waiting(stages_of_attack(name, gpu()))


def losses(stages: Iterator[Stage]) -> list[float]:
    """The mean loss of the first epoch of the first stage."""
    found: list[float] = []
    next(stages).training.run(on_epoch=lambda epoch: found.append(epoch.loss))
    return found[:1]


@pytest.mark.parametrize("name", ["anp", "bcu", "fp", "ft", "i-bau", "mcr", "nad"])
def test_a_method_computes_what_the_cpu_does(name: str) -> None:
    """In its first epoch; auto draws on the device, where the same seed gives other numbers."""
    on_cpu, on_gpu = (losses(stages_of_defense(name, device)) for device in (CPU, gpu()))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("name", ["badnets", "blended", "none", "sig"])
def test_an_attack_computes_what_the_cpu_does(name: str) -> None:
    on_cpu, on_gpu = (losses(stages_of_attack(name, device)) for device in (CPU, gpu()))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("name", detectors.names())
def test_a_detector_finds_what_it_finds_on_the_cpu(name: str) -> None:
    def per_class(device: Device) -> Any:
        model = small().to(device.torch)
        subject = Subject(model=model, images=pictures().images, device=device)
        scores = find_detector(name)().scan(subject)
        return [scores.score, *scores.per_class.tolist()]

    assert per_class(gpu()) == pytest.approx(per_class(CPU), rel=0.1, abs=0.5)
