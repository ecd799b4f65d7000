"""Random corruptions change every image, each differently, and keep values in range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bcu_cli.defenses.adversarial import corruptions
from bcu_cli.defenses.adversarial.corruptions import CORRUPTIONS, corrupt

BY_NAME = {way.__name__: way for way in CORRUPTIONS}


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def drawn(seed: int, shown: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return corrupt(shown)


@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (64, 1, 9, 14), (1, 3, 8, 8), (0, 3, 8, 8)])
def test_what_comes_out_are_images(shape: tuple[int, ...]) -> None:
    shown = images(*shape)
    out = drawn(0, shown)
    assert out.shape == shown.shape
    assert bool(((out >= 0.0) & (out <= 1.0)).all())
    assert torch.equal(shown, images(*shape))  # left as they were


def test_the_seed_decides() -> None:
    shown = images(16, 3, 16, 16)
    assert torch.equal(drawn(0, shown), drawn(0, shown))
    assert not torch.equal(drawn(0, shown), drawn(1, shown))


@pytest.mark.parametrize("name", BY_NAME)
def test_each_way_changes_images_each_differently(name: str) -> None:
    """From one fixed change a student would learn to ignore that change only."""
    picture = images(2, 3, 32, 32)[:1]
    shown = torch.cat([picture, images(31, 3, 32, 32)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = (BY_NAME[name](shown).clamp(0.0, 1.0)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert float((first - picture[0]).abs().mean()) > 1e-4


def test_what_is_on_an_image_stays() -> None:
    """Most corrupted images are closer to their original than to any other image."""
    smooth = torch.nn.functional.interpolate(images(32, 3, 4, 4), size=(32, 32), mode="bilinear")
    out = drawn(3, smooth)
    distances = torch.cdist(out.flatten(1), smooth.flatten(1))
    assert float((distances.argmin(1) == torch.arange(32)).float().mean()) > 0.9


def test_all_ways_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def recorded(way: int) -> object:
        return lambda shown: (taken.append(way), shown)[1]

    monkeypatch.setattr(corruptions, "CORRUPTIONS", tuple(recorded(way) for way in range(len(CORRUPTIONS))))
    drawn(0, images(256, 3, 8, 8))
    assert set(taken) == set(range(len(CORRUPTIONS)))
