from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bcu_cli.images.augmentation import Augmentation, augment


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(padding=st.integers(0, 5), flip=st.booleans(), seed=st.integers(0, 2**31), height=st.integers(2, 9))
def test_each_view_is_a_crop_of_the_padded_image_or_of_its_mirror(
    padding: int, flip: bool, seed: int, height: int
) -> None:
    images = torch.arange(1, 1 + 3 * 2 * height * 7, dtype=torch.int32).view(3, 2, height, 7)
    views = augment(images, Augmentation(crop_padding=padding, flip=flip), chance(seed))
    assert views.shape == images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    for view, source in zip(views, padded, strict=True):
        crops = [
            source[:, top : top + height, left : left + 7]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        candidates = crops + ([crop.flip(-1) for crop in crops] if flip else [])
        assert any(torch.equal(view, candidate) for candidate in candidates)


def test_all_crops_and_mirrors_occur() -> None:
    images = torch.arange(1, 10).view(1, 1, 3, 3).expand(2000, 1, 3, 3)
    views = augment(images, Augmentation(crop_padding=1, flip=True), chance())
    assert len({view.numpy().tobytes() for view in views}) == 18


def test_the_seed_decides() -> None:
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=chance())
    first, again, other = (augment(images, Augmentation(), chance(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
