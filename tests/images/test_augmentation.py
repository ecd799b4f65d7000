from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bcu_cli.errors import UsageError
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


def test_rotation_turns_about_the_centre_and_fills_with_zeros() -> None:
    image = torch.arange(1, 26).view(1, 1, 5, 5)
    views = augment(
        image.expand(400, 1, 5, 5), Augmentation(crop_padding=0, flip=False, rotation=180.0), chance()
    )
    assert (views[:, 0, 2, 2] == 13).all()
    seen = {view.numpy().tobytes() for view in views}
    quarters = [torch.rot90(image, turns, (2, 3))[0].contiguous().numpy().tobytes() for turns in range(4)]
    assert all(quarter in seen for quarter in quarters)
    assert (views[:, 0, 0, 0] == 0).any()
    assert 160 < sum(torch.equal(view, image[0]) for view in views) < 260  # half of them stay as they are


def test_a_small_rotation_stays_small() -> None:
    image = torch.arange(1, 10).view(1, 1, 3, 3).expand(200, 1, 3, 3)
    views = augment(image, Augmentation(crop_padding=0, flip=False, rotation=10.0), chance())
    assert torch.equal(views, image)  # no pixel of 3x3 moves by half a pixel


def test_cutout_blanks_one_square_somewhere() -> None:
    images = torch.ones(500, 2, 6, 6)
    views = augment(images, Augmentation(crop_padding=0, flip=False, cutout=3), chance())
    blanked = (views[:, 0] == 0).sum((1, 2))
    assert torch.equal(views[:, 0], views[:, 1])
    assert blanked.max() == 9
    assert set(blanked.tolist()) == {4, 6, 9}  # whole, over an edge, over a corner
    assert (views.mean(0) < 1).all()


def test_no_augmentation_gives_the_images_themselves() -> None:
    images = torch.ones(2, 3, 4, 4)
    assert augment(images, Augmentation(crop_padding=0, flip=False), chance()) is images


@pytest.mark.parametrize("options", [{"crop_padding": -1}, {"cutout": -1}, {"rotation": 181.0}])
def test_views_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="make no sense"):
        Augmentation(**options)
