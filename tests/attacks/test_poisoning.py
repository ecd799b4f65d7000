from __future__ import annotations

import pytest
import torch

from bcu_cli import attacks, triggers
from bcu_cli.attacks.poisoning import AttackOptions, find, poison
from bcu_cli.errors import UsageError
from bcu_cli.images.folder import ImageSet
from bcu_cli.triggers import base

SHAPE = (3, 8, 8)


def pictures() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 255, (200, *SHAPE), dtype=torch.uint8, generator=generator)
    return ImageSet(images=images, labels=torch.arange(200) % 4, classes=("a", "b", "c", "d"))


@pytest.mark.parametrize("name", attacks.names())
def test_every_attack_has_a_recipe_with_a_trigger(name: str) -> None:
    recipe = find(name)
    assert recipe.trigger in triggers.names()
    assert 0 < recipe.poison_rate <= 1


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.25])
def test_the_poisoned_share_of_the_whole_set_is_exact(rate: float) -> None:
    data, trigger = pictures(), base.make("badnets", SHAPE)
    poisoned = poison(data, trigger, AttackOptions(target_class=2, poison_rate=rate))
    changed = (poisoned.data.images != data.images).flatten(1).any(1).nonzero()[:, 0]
    assert len(poisoned.index) == round(200 * rate)
    assert torch.equal(changed, poisoned.index)
    assert poisoned.data.labels[poisoned.index].unique().tolist() == [2]
    others = torch.ones(200, dtype=torch.bool)
    others[poisoned.index] = False
    assert torch.equal(poisoned.data.labels[others], data.labels[others])


def test_clean_label_triggers_only_the_target_class_and_changes_no_label() -> None:
    data, trigger = pictures(), base.make("sig", SHAPE)
    poisoned = poison(data, trigger, AttackOptions(target_class=1, poison_rate=0.8, clean_label=True))
    assert len(poisoned.index) == 40
    assert data.labels[poisoned.index].unique().tolist() == [1]
    assert torch.equal(poisoned.data.labels, data.labels)
    assert torch.equal(
        poisoned.data.images[poisoned.index], trigger.apply_to_bytes(data.images[poisoned.index])
    )


@pytest.mark.parametrize(
    "options", [{"target_class": 4}, {"target_class": -1}, {"poison_rate": 0.0}, {"poison_rate": 1.1}]
)
def test_what_makes_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        poison(pictures(), base.make("badnets", SHAPE), AttackOptions(**options))


def test_unknown_attack() -> None:
    with pytest.raises(UsageError, match="no attack called nothing"):
        find("nothing")
