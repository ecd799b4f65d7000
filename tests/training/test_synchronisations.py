"""What a training step asks of the host: on a GPU each copy or read-out is a wait or a small transfer."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch

from bcu_cli.defenses.adversarial import sinusoids
from bcu_cli.defenses.adversarial.objective import training_objective
from bcu_cli.defenses.adversarial.searching import LIMITS
from bcu_cli.defenses.auto import Auto, AutoOptions
from bcu_cli.defenses.bcu import BcuOptions, distillation
from bcu_cli.evaluation.adversary import Adversary
from bcu_cli.images.augmentation import Augmentation, augment
from bcu_cli.images.folder import ImageSet
from bcu_cli.models.architectures.dispatch import DispatchMode
from bcu_cli.models.new_classifier import new_classifier
from bcu_cli.training.devices import Device
from bcu_cli.training.loop import Training
from bcu_cli.training.options import TrainingOptions
from bcu_cli.training.profile import BACKWARD, LOSS, OPTIMIZER, TEACHER, profiling, watch

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::unique2")
"""What hands a value, or a size that depends on values, to the host: each makes it wait for the device."""
COPIES = ("aten::_to_copy", "aten::copy_")


class _Counter(DispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[func._schema.name] += 1
        return func(*args, **(kwargs or {}))

    def count(self, names: tuple[str, ...]) -> dict[str, int]:
        return {name: self.of[name] for name in names if self.of[name]}


def distilling(precision: str = "fp32") -> tuple[Training, Any]:
    teacher = new_classifier("resnet8", 4, IMAGES[:8], seed=0).eval()
    student = copy.deepcopy(teacher)
    options = TrainingOptions(epochs=4, batch_size=32, augmentation=Augmentation(crop_padding=2))
    device = Device(torch=CPU, precision=precision)
    objective = distillation(student, teacher, BcuOptions())
    return Training(student, IMAGES, objective, options, device=device, seed=0), teacher


def counted(training: Training, steps: int) -> _Counter:
    """What ``steps`` steps in the middle of an epoch do, the first ones being over."""
    training._step(training._batch(0, 0))
    training.done = 1
    with _Counter() as counter:
        for _ in range(steps):
            training._step(training._batch(0, 1))
    return counter


def test_a_step_of_distillation_waits_for_nothing() -> None:
    assert counted(distilling()[0], 1).count(WAITS) == {}


def test_a_step_of_distillation_copies_its_images_once() -> None:
    """In fp32: the uint8 views to float32 in the memory format of convolutions.

    The other copy is autograd's, of the pooled features' gradient ``[N, 64]``, on the device.
    What is drawn is on the device already here. On a GPU it takes four transfers more, of the index, what is
    mirrored and the shifts of rows and columns: at most 2 kB each, too little to wait for.
    """
    assert counted(distilling()[0], 1).count(COPIES) == {"aten::_to_copy": 1, "aten::copy_": 1}
    assert counted(distilling()[0], 3).count(COPIES) == {"aten::_to_copy": 3, "aten::copy_": 3}


def test_bf16_adds_a_cast_of_each_weight_and_nothing_for_each_layer_else() -> None:
    """resnet8 has 9 convolutions and 1 linear layer with a bias.

    Forward, each network casts the normalised images, 10 weights and 1 bias (12), and its logits to float32
    (1). Backward, the student's logits and its 11 parameters' gradients come back (12). One is the images'.
    """
    found = counted(distilling("bf16")[0], 1)
    assert found.count(WAITS) == {}
    assert found.count(COPIES) == {"aten::_to_copy": 2 * 13 + 12 + 1, "aten::copy_": 1}


def test_the_counter_sees_what_would_wait() -> None:
    """Else the tests above could not fail."""
    training, _ = distilling()
    objective = training.objective

    def waiting(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        loss = objective(images, index, progress)
        return loss * float(loss.detach().item() > -1) + images[index >= 0].sum() * 0.0

    training.objective = waiting
    assert set(counted(training, 1).count(WAITS)) >= {"aten::_local_scalar_dense"}


class Sent(DispatchMode):
    """How many numbers each transfer from the host to a device without values takes.

    On such a device (``meta``) whatever would wait for a value fails.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::_to_copy" and args[0].device.type != out.device.type:
            self.numbers.append(args[0].numel())
        return out


def test_of_the_views_only_what_is_drawn_comes_from_the_host() -> None:
    """A value for each pixel of each view would be 100 MB a step at 224x224."""
    with Sent() as sent:
        images = torch.empty(32, 3, 16, 20, dtype=torch.uint8, device="meta")
        augment(images, Augmentation(crop_padding=2), torch.Generator().manual_seed(0))
    assert sent.numbers == [32, 32, 32]  # mirrored or not, the shifts of rows, the shifts of columns


def test_a_step_of_auto_waits_for_nothing_and_sends_one_order_of_its_images() -> None:
    """Which of 11 images get which corruption, twice; all else is drawn on the device."""
    model = new_classifier("resnet8", 4, IMAGES[:8], seed=0)
    data = ImageSet(images=IMAGES)
    auto = Auto(model, data, AutoOptions(epochs=1), device=Device(torch=CPU, precision="fp32"), held_out=data)
    auto.teacher.to("meta")
    auto.student.to("meta")
    weights = torch.ones(sinusoids.NUM_KINDS, device="meta")
    adversary = Adversary(range(4), (3, 16, 16), LIMITS, seed=0).to("meta")
    objective = training_objective(auto.student, auto.teacher, adversary, weights, auto.effort)
    views = torch.rand(32, 3, 16, 16, device="meta")
    with Sent() as sent:
        objective(views, torch.arange(32), 0.5).backward()
    assert sent.numbers == [2 * 11]
    assert adversary.perturbations.grad is not None


def test_the_order_is_drawn_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, **more: drawn.append(n) or randperm(n, **more))
    distilling()[0].run()
    assert drawn == [64] * 4


def test_a_profile_adds_up_and_knows_the_two_networks_apart() -> None:
    training, teacher = distilling()
    device = Device(torch=CPU, precision="fp32")
    with profiling(device) as profile:
        watch(teacher, TEACHER)
        teacher(IMAGES[:2] / 255.0)  # no part of a step
        before = profile.as_json([], 1.0)["seconds"]
        training.run()
    after = profile.as_json([], 1.0)["seconds"]
    assert before[TEACHER] == 0 < after[TEACHER]
    assert min(after[name] for name in (LOSS, BACKWARD, OPTIMIZER)) > 0
    assert after["total"] == pytest.approx(sum(after.values()) - after["total"], abs=0.01)
    teacher(IMAGES[:2] / 255.0)  # the hooks are gone
    assert profile.as_json([], 1.0)["seconds"][TEACHER] == after[TEACHER]
