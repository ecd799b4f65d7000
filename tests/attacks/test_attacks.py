"""What each attack does to its training images: how many, which, and with which label."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bcu_cli import attacks, triggers
from bcu_cli.attacks import iab, lc
from bcu_cli.attacks.base import Attack, AttackOptions, find
from bcu_cli.errors import UsageError
from bcu_cli.images.augmentation import Augmentation
from bcu_cli.images.folder import ImageSet
from bcu_cli.models import Classifier, Preprocessing
from bcu_cli.training.devices import Device
from bcu_cli.training.loop import Stage, Training
from bcu_cli.training.options import TrainingOptions
from bcu_cli.triggers import base

CPU = Device(torch=torch.device("cpu"), precision="fp32")
SHAPE = (3, 8, 8)
PLAIN = Augmentation(crop_padding=0, flip=False)
contract = pytest.mark.parametrize("name", attacks.names())


def pictures() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 255, (200, *SHAPE), dtype=torch.uint8, generator=generator)
    return ImageSet(images=images, labels=torch.arange(200) % 4, classes=("a", "b", "c", "d"))


class Watched(nn.Module):
    """A small network that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        self.shown: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images.detach().clone())
        return self.layers(images)


def classifier() -> Classifier:
    torch.manual_seed(0)
    no_change = Preprocessing(input_size=SHAPE, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Classifier(Watched(), no_change, 4)


def attack(name: str, data: ImageSet | None = None, *, epochs: int = 1, **options: Any) -> Attack:
    kind = find(name)
    trigger = base.make(kind.trigger_name, SHAPE) if kind.trigger_name else None
    how = TrainingOptions(epochs=epochs, batch_size=100, learning_rate=0.01, augmentation=PLAIN)
    settings = AttackOptions(**{"poison_rate": kind.poison_rate, "training": how, **options})
    return kind(classifier(), data or pictures(), trigger, settings, device=CPU)


def first_batch(attacked: Attack) -> torch.Tensor:
    """What the network is shown in the first step of the last stage, all stages before it being done."""
    *_, last = _all_but_the_last_run(attacked)
    return _first_step(attacked, last)


def _first_step(attacked: Attack, last: Stage) -> torch.Tensor:
    attacked.model.network.shown.clear()

    def stop() -> None:
        raise StopIteration

    with pytest.raises(StopIteration):
        last.training.run(on_step=stop)
    return attacked.model.network.shown[0]


def _all_but_the_last_run(attacked: Attack) -> list[Stage]:
    stages = []
    for stage in attacked.stages():
        if stage.title != "training":
            stage.training.run()
        stages.append(stage)
    return stages


@contract
def test_every_attack_has_a_trigger_and_a_rate(name: str) -> None:
    kind = find(name)
    assert kind.name == name
    assert kind.trigger_name in triggers.names()
    assert 0 < kind.poison_rate <= 1


@contract
def test_every_attack_trains_its_network_and_says_how_many_images_it_triggers(name: str) -> None:
    attacked = attack(name)
    before = [weight.clone() for weight in attacked.model.parameters()]
    assert attacked.poisoned == (40 if name in {"lc", "sig"} else 20)  # 80 % of a class of 50, 10 % of 200
    stages = []
    for stage in attacked.stages():
        stage.training.run()
        stages.append(stage)
    assert not any(torch.equal(a, b) for a, b in zip(before, attacked.model.parameters(), strict=True))
    assert all(stage.training.throughput().flops_per_image > 0 for stage in stages)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.25])
def test_the_poisoned_share_of_the_whole_set_is_exact(rate: float) -> None:
    data = pictures()
    attacked = attack("badnets", data, target_class=2, poison_rate=rate)
    poisoned = attacked.poisoned_set()
    changed = (poisoned.images != data.images).flatten(1).any(1).nonzero()[:, 0]
    assert attacked.poisoned == len(changed) == round(200 * rate)
    assert poisoned.labels[changed].unique().tolist() == [2]
    others = torch.ones(200, dtype=torch.bool)
    others[changed] = False
    assert torch.equal(poisoned.labels[others], data.labels[others])


def test_all_to_all_leads_each_class_to_the_next() -> None:
    data = pictures()
    attacked = attack("badnets", data, target_class="next")
    index = attacked.poisoned_index()
    assert torch.equal(attacked.poisoned_set().labels[index], (data.labels[index] + 1) % 4)


def test_clean_label_triggers_only_the_target_class_and_changes_no_label() -> None:
    data = pictures()
    attacked = attack("sig", data, target_class=1)
    poisoned, index = attacked.poisoned_set(), attacked.poisoned_index()
    assert len(index) == 40
    assert data.labels[index].unique().tolist() == [1]
    assert torch.equal(poisoned.labels, data.labels)
    assert torch.equal(poisoned.images[index], attacked.trigger.apply_to_bytes(data.images[index]))


def test_none_changes_nothing() -> None:
    data = pictures()
    attacked = attack("none", data)
    assert attacked.poisoned == 0
    assert attacked.poisoned_set() is data


def test_lc_takes_images_away_from_their_class_before_it_triggers_them() -> None:
    data = pictures()
    attacked = attack("lc", data, target_class=3, epochs=2)
    surrogate_stage, _ = _all_but_the_last_run(attacked)
    assert surrogate_stage.training.model is attacked.surrogate
    index = attacked.poisoned_index()
    clean = data.images[index]
    perturbed = attacked.perturb(clean, data.labels[index])
    change = (perturbed.int() - clean.int()).abs()
    assert change.max() == 16
    losses = [
        F.cross_entropy(attacked.surrogate(images / 255.0), data.labels[index])
        for images in (clean, perturbed)
    ]
    assert losses[1] > losses[0]
    assert torch.equal(attacked.poisoned_set().images[index], attacked.trigger.apply_to_bytes(perturbed))
    assert torch.equal(attacked.poisoned_set().labels, data.labels)


def test_lc_trains_a_surrogate_of_other_weights_unless_it_is_given_one() -> None:
    attacked = attack("lc")
    next(iter(attacked.stages()))
    own, other = attacked.model.network.layers[0], attacked.surrogate.network.layers[0]
    assert not torch.equal(own.weight, other.weight)
    given = attack("lc")
    given.surrogate = classifier()
    assert [stage.title for stage in given.stages()] == ["training"]


def test_lc_stays_within_epsilon_and_within_the_range_of_an_image() -> None:
    images = torch.cat([torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE)])
    moved = lc.pgd(classifier(), images, torch.tensor([0, 1, 2, 3]))
    assert (moved - images).abs().max() == pytest.approx(lc.EPSILON)
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_wanet_has_three_modes_in_each_batch() -> None:
    attacked = attack("wanet", target_class=1)
    shown = first_batch(attacked)
    assert len(shown) == 100
    images = _clean_batch(attacked)
    assert torch.allclose(shown[:10], attacked.trigger.apply(images[:10]), atol=1e-6)
    noisy, clean = slice(10, 30), slice(30, 100)
    assert not torch.allclose(shown[noisy], attacked.trigger.apply(images[noisy]), atol=1e-2)
    assert not torch.allclose(shown[noisy], images[noisy], atol=1e-2)
    assert torch.equal(shown[clean], images[clean])


def test_iab_has_three_modes_in_each_batch_and_crosses_triggers() -> None:
    attacked = attack("iab")
    shown, images = first_batch(attacked), _clean_batch(attacked)
    changed = (shown != images).flatten(1).any(1)
    assert changed[:20].all()
    assert not changed[20:].any()


def test_iab_trains_a_sparse_mask_first_and_leaves_it_then() -> None:
    attacked = attack("iab", epochs=300)
    mask_stage, last = _all_but_the_last_run(attacked)
    assert mask_stage.training.steps == 60
    masks = attacked.trigger.mask_network.as_mask(pictures().images / 255.0)
    assert 0 < masks.mean() < 1.5 * iab.DENSITY
    before = [weight.clone() for weight in attacked.trigger.mask_network.parameters()]
    drawing = [weight.clone() for weight in attacked.trigger.pattern_network.parameters()]
    _first_step(attacked, last)
    assert last.title == "training"
    assert all(
        torch.equal(a, b) for a, b in zip(before, attacked.trigger.mask_network.parameters(), strict=True)
    )
    assert not all(
        torch.equal(a, b) for a, b in zip(drawing, attacked.trigger.pattern_network.parameters(), strict=True)
    )


def test_iab_diversity_is_the_distance_of_images_over_that_of_what_is_drawn() -> None:
    images, others = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    generated, generated_others = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.25)
    assert iab.diversity_loss(images, others, generated, generated_others) == pytest.approx(0.5 / 0.251)


def _clean_batch(attacked: Attack) -> torch.Tensor:
    """The images of the first step of a training, which the options leave as they are."""
    data = pictures()
    seen: list[torch.Tensor] = []
    watched = nn.Linear(1, 1)

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        seen.append(images)
        return watched.weight.sum()

    how = attacked.options.training
    Training(watched, data.images, objective, how, device=CPU, seed=attacked.options.seed).run()
    return seen[0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("badnets", {"target_class": 4}, "there is no class 4 among 4 classes"),
        ("badnets", {"target_class": -1}, "there is no class -1"),
        ("badnets", {"poison_rate": 0.0}, "poisons none"),
        ("badnets", {"poison_rate": float("nan")}, "poisons none"),
        ("badnets", {"poison_rate": 1.1}, "asks for 220 of the 200 images of the training set"),
        ("sig", {"poison_rate": 1.2}, "asks for 60 of the 50 images of class 0"),
        ("lc", {"target_class": "next"}, "lc changes no label"),
    ],
)
def test_what_makes_no_sense(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attack(name, **options)


def test_unknown_attack() -> None:
    with pytest.raises(UsageError, match="no attack called nothing"):
        find("nothing")


def test_wanet_warps_before_it_augments() -> None:
    """Else the edges of a crop would be blurred where an image is warped, and give the warp away."""
    data = pictures()
    white = ImageSet(images=torch.full_like(data.images, 255), labels=data.labels, classes=data.classes)
    attacked = attack("wanet", white)
    how = attacked.options.training
    views = TrainingOptions(
        epochs=how.epochs, batch_size=100, augmentation=Augmentation(crop_padding=2, flip=False)
    )
    attacked.options = AttackOptions(training=views)
    shown = first_batch(attacked)
    assert (shown * 255).round().unique().tolist() == [0, 255]
