"""Each trigger against values worked out by hand, and the contract that all of them keep."""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bcu_cli import triggers
from bcu_cli.checkpoints import read
from bcu_cli.errors import CheckpointError, TriggerError
from bcu_cli.triggers import base
from bcu_cli.triggers.badnets import BadNets
from bcu_cli.triggers.base import Implanted
from bcu_cli.triggers.blended import Blended
from bcu_cli.triggers.colour import Colour
from bcu_cli.triggers.custom import Custom
from bcu_cli.triggers.frequency import Frequency
from bcu_cli.triggers.iab import paste
from bcu_cli.triggers.lc import LabelConsistent
from bcu_cli.triggers.lowfreq import HIGHEST
from bcu_cli.triggers.refool import Refool, ghosted
from bcu_cli.triggers.sig import Sig
from bcu_cli.triggers.wanet import WaNet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHAPE = (3, 32, 32)
contract = pytest.mark.parametrize("name", triggers.names())


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_triggers_that_need_a_file_are_named() -> None:
    assert {name for name in triggers.names() if base.find(name).learnt} == set(triggers.LEARNT)
    assert not set(triggers.LEARNT) & set(triggers.names(learnt=False))


def test_the_six_of_the_paper_are_found() -> None:
    assert {"badnets", "blended", "iab", "lc", "sig", "wanet"} <= set(triggers.names())


@contract
def test_name_paper_shape_and_range(name: str) -> None:
    trigger = base.make(name, SHAPE)
    images = noise(4, *SHAPE)
    before = images.clone()
    triggered = trigger.apply(images)
    assert trigger.name == name
    assert trigger.paper
    assert triggered.shape == images.shape
    assert triggered.dtype == images.dtype
    assert triggered.min() >= 0
    assert triggered.max() <= 1
    assert not torch.equal(triggered, images)
    assert torch.equal(images, before)


@contract
def test_saved_and_loaded_it_does_the_same(name: str, tmp_path: Path) -> None:
    trigger = base.make(name, SHAPE, seed=7)
    hashes = [
        base.save(
            Implanted(trigger=trigger, target_class=3, num_classes=5), tmp_path / f"{i}.safetensors", SHAPE
        )
        for i in "ab"
    ]
    assert hashes[0] == hashes[1]
    loaded = base.load(tmp_path / "a.safetensors", SHAPE)
    assert (loaded.target_class, loaded.num_classes) == (3, 5)
    assert torch.equal(loaded.trigger.apply(noise(2, *SHAPE)), trigger.apply(noise(2, *SHAPE)))


@contract
def test_another_image_size_is_refused(name: str, tmp_path: Path) -> None:
    base.save(
        Implanted(trigger=base.make(name, SHAPE), target_class=0, num_classes=5),
        tmp_path / "t.safetensors",
        SHAPE,
    )
    with pytest.raises(TriggerError, match=r"is for images of 3×32×32, the model takes 3×64×64"):
        base.load(tmp_path / "t.safetensors", (3, 64, 64))


def test_badnets_replaces_nine_pixels() -> None:
    grey = torch.full((1, 3, 4, 4), 0.5)
    expected = [[0.5, 0.5, 0.5, 0.5], [0.5, 0, 0, 1], [0.5, 0, 1, 0], [0.5, 1, 0, 1]]
    for channel in BadNets().apply(grey)[0]:
        assert channel.tolist() == expected


def test_badnets_keeps_its_share_of_larger_images() -> None:
    trigger = base.make("badnets", (3, 224, 224))
    changed = trigger.apply(torch.full((1, 3, 224, 224), 0.5)) != 0.5
    assert changed.sum() == 3 * 21 * 21


def test_lc_has_the_checkerboard_in_all_four_corners() -> None:
    grey = torch.full((1, 3, 7, 7), 0.5)
    expected = [
        [1, 0, 1, 0.5, 1, 0, 1],
        [0, 1, 0, 0.5, 0, 1, 0],
        [1, 0, 0, 0.5, 0, 0, 1],
        [0.5] * 7,
        [1, 0, 0, 0.5, 0, 0, 1],
        [0, 1, 0, 0.5, 0, 1, 0],
        [1, 0, 1, 0.5, 1, 0, 1],
    ]
    for channel in LabelConsistent().apply(grey)[0]:
        assert channel.tolist() == expected


def test_wanet_of_strength_0_changes_nothing() -> None:
    trigger = base.make("wanet", SHAPE, settings={"strength": 0.0})
    images = noise(3, *SHAPE)
    assert torch.allclose(trigger.apply(images), images, atol=1e-5)


def test_wanet_takes_each_pixel_from_where_its_field_says() -> None:
    to_the_right = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    images = noise(
        1, 3, 33, 33
    )  # pixels are 2 / 32 apart, which is 1 / 32 of the field times a strength of 2
    warped = WaNet(field=to_the_right, strength=2.0).apply(images)
    assert torch.allclose(warped[..., :-1], images[..., 1:], atol=1e-5)
    assert torch.allclose(warped[..., -1], images[..., -1], atol=1e-5)  # nothing lies beyond the edge


def test_wanet_field_has_a_mean_magnitude_of_1_and_is_decided_by_the_seed() -> None:
    first, again, other = (base.make("wanet", SHAPE, seed=seed).tensors()["field"] for seed in (1, 1, 2))
    assert first.shape == (2, 4, 4)
    assert first.abs().mean() == pytest.approx(1.0)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_iab_pastes_the_pattern_where_the_mask_is() -> None:
    images, patterns = torch.full((1, 3, 2, 2), 0.2), torch.full((1, 3, 2, 2), 0.6)
    mask = torch.tensor([[[[0.0, 1.0], [0.5, 0.0]]]])
    for channel in paste(images, patterns, mask)[0]:
        assert channel.flatten().tolist() == pytest.approx([0.2, 0.6, 0.4, 0.2])


def test_iab_draws_another_trigger_for_another_image() -> None:
    trigger = base.make("iab", SHAPE)
    change = trigger.apply(noise(2, *SHAPE)) - noise(2, *SHAPE)
    assert not torch.allclose(change[0], change[1], atol=1e-2)


@pytest.mark.parametrize("shape", [(3, 33, 20), (1, 28, 28)])
@contract
def test_images_of_any_shape(name: str, shape: tuple[int, int, int]) -> None:
    images = noise(2, *shape)
    assert base.make(name, shape).apply(images).shape == images.shape


def test_blended_arithmetic() -> None:
    trigger = Blended(pattern=torch.full((3, 2, 2), 1.0), alpha=0.2)
    assert trigger.apply(torch.full((1, 3, 2, 2), 0.5)).flatten().tolist() == pytest.approx([0.6] * 12)


def test_blended_pattern_is_decided_by_the_seed_and_uniform() -> None:
    first, again, other = (base.make("blended", SHAPE, seed=seed).tensors()["pattern"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.mean() == pytest.approx(0.5, abs=0.02)
    assert first.max() > 0.99


def test_sig_column_values() -> None:
    column = Sig(delta=20, frequency=6).apply(torch.full((1, 1, 2, 32), 0.5))[0, 0]
    expected = [0.5 + 20 / 255 * math.sin(2 * math.pi * 6 * j / 32) for j in range(32)]
    assert column[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(column[0], column[1])


def test_lowfreq_pattern_has_no_mean_and_nothing_above_its_highest_frequency() -> None:
    trigger = base.make("lowfreq", SHAPE, settings={"delta": 25.5})
    change = trigger.apply(torch.full((1, *SHAPE), 0.5))[0] - 0.5
    assert change.abs().max() == pytest.approx(0.1, abs=1e-6)
    energy = torch.fft.fft2(change).abs()
    periods = (torch.fft.fftfreq(32) * 32).abs().round()
    low = torch.maximum(periods[:, None], periods[None, :]) <= HIGHEST
    assert energy[:, ~low].max() < 1e-4 * energy.max()
    assert energy[:, 0, 0].max() < 1e-4 * energy.max()


@pytest.mark.parametrize(("name", "tensor"), [("lowfreq", "pattern"), ("refool", "reflection")])
def test_what_is_drawn_is_decided_by_the_seed(name: str, tensor: str) -> None:
    first, again, other = (base.make(name, SHAPE, seed=seed).tensors()[tensor] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_colour_maps_every_pixel_alike() -> None:
    images = torch.tensor([[0.5, 0.95], [0.5, 0.05], [0.2, 1.0]]).reshape(1, 3, 1, 2)
    shifted = Colour(delta=25.5).apply(images)  # 0.1 to magenta, clipped
    assert shifted[0, :, 0, 0].tolist() == pytest.approx([0.6, 0.4, 0.3])
    assert shifted[0, :, 0, 1].tolist() == pytest.approx([1.0, 0.0, 1.0])


def test_refool_only_brightens_and_by_no_more_than_its_weight() -> None:
    change = base.make("refool", SHAPE, settings={"weight": 0.25}).apply(noise(2, *SHAPE)) - noise(2, *SHAPE)
    assert change.min() >= 0
    assert change.max() <= 0.25 + 1e-6
    bright = Refool(reflection=torch.tensor([[[0.0, 0.4], [1.0, 1.0]]]), weight=0.5)
    added = bright.apply(torch.tensor([[[[0.2, 0.2], [0.2, 0.9]]]]))
    assert added.flatten().tolist() == pytest.approx([0.2, 0.4, 0.7, 1.0])


def test_refool_ghost_is_a_fainter_copy_to_the_lower_right() -> None:
    scene = torch.zeros(1, 5, 5)
    scene[0, 2, 2] = 1.0  # one light, at (1, 1) of the 4x4 image that starts at (1, 1)
    expected = torch.zeros(4, 4)
    expected[1, 1], expected[2, 2] = 0.6, 0.4
    assert torch.allclose(ghosted(scene, 1)[0], expected)


def test_settings_replace_the_papers_and_strangers_are_refused() -> None:
    assert base.make("sig", SHAPE, settings={"delta": 60.0}).settings()["delta"] == 60
    with pytest.raises(TriggerError, match="sig has no setting alpha"):
        base.make("sig", SHAPE, settings={"alpha": 1.0})
    with pytest.raises(TriggerError, match="iab has no setting width"):
        base.make("iab", SHAPE, settings={"width": 8.0})
    with pytest.raises(TriggerError, match="no trigger called nothing"):
        base.make("nothing", SHAPE)


def test_a_trigger_larger_than_the_image() -> None:
    with pytest.raises(TriggerError, match="badnets does not fit images of 3×32×32"):
        base.make("badnets", SHAPE, settings={"cell": 11})


def test_bytes_are_rounded_as_a_picture_file_would_be() -> None:
    images = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    trigger = Blended(pattern=torch.full((3, 8, 8), 1.0), alpha=0.2)
    assert trigger.apply_to_bytes(images).unique().tolist() == [131]  # 0.8 · 100 + 0.2 · 255


@pytest.mark.parametrize(("mode", "expected"), [("replace", 1.0), ("add", 0.75), ("blend", 0.625)])
def test_own_picture_acts_where_the_mask_is_white(tmp_path: Path, mode: str, expected: float) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "t.png")
    mask = Image.new("L", (8, 8))
    mask.putpixel((2, 1), 255)
    mask.save(tmp_path / "m.png")
    trigger = Custom.from_files(tmp_path / "t.png", (3, 8, 8), mask=tmp_path / "m.png", mode=mode, alpha=0.25)
    triggered = trigger.apply(torch.full((1, 3, 8, 8), 0.5))
    assert triggered[0, :, 1, 2].tolist() == pytest.approx([expected] * 3)
    triggered[0, :, 1, 2] = 0.5
    assert torch.equal(triggered, torch.full((1, 3, 8, 8), 0.5))


def test_own_picture_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_text("no image")
    with pytest.raises(TriggerError, match=r"t\.png is no readable image"):
        Custom.from_files(tmp_path / "t.png", SHAPE)
    with pytest.raises(TriggerError, match="no trigger mode wrong"):
        Custom(picture=torch.zeros(3, 8, 8), mask=torch.zeros(1, 8, 8), mode="wrong")


def test_a_damaged_file_of_networks(tmp_path: Path) -> None:
    trigger = base.make("iab", SHAPE)
    del (tensors := trigger.tensors())["mask.leave.bias"]
    trigger.tensors = lambda: tensors
    base.save(Implanted(trigger=trigger, target_class=0, num_classes=5), tmp_path / "t.safetensors", SHAPE)
    with pytest.raises(TriggerError, match=r"the trigger in .*t\.safetensors is damaged"):
        base.load(tmp_path / "t.safetensors", SHAPE)


def test_rotation_by_a_quarter_turn_is_that_of_the_pixels() -> None:
    images = noise(2, *SHAPE)
    turned = base.make("rotation", SHAPE, settings={"degrees": 90.0}).apply(images)
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_rotation_keeps_a_circle_round_in_a_wide_image() -> None:
    row, column = torch.arange(24.0)[:, None] - 11.5, torch.arange(48.0) - 23.5
    ring = torch.exp(-((row**2 + column**2).sqrt() - 6.0).square() / 4.0).expand(1, 3, 24, 48)
    turned = base.make("rotation", (3, 24, 48), settings={"degrees": 40.0}).apply(ring)
    torch.testing.assert_close(turned, ring, atol=0.07, rtol=0)  # bilinear interpolation flattens the ridge


def test_quantise_leaves_so_many_levels() -> None:
    images = noise(2, *SHAPE)
    trigger = base.make("quantise", SHAPE, settings={"bits": 2})
    assert trigger.apply(images).unique().tolist() == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert float((trigger.apply(images) - images).abs().max()) <= 1 / 6 + 1e-6
    assert trigger.apply_to_bytes((images * 255).to(torch.uint8)).unique().tolist() == [0, 85, 170, 255]


def test_solarise_reflects_what_is_bright_and_leaves_the_rest() -> None:
    grey = torch.tensor([0.0, 0.3, 0.5, 0.6, 1.0]).view(1, 1, 1, 5)
    solarised = base.make("solarise", (1, 1, 5), settings={"threshold": 0.5}).apply(grey)
    torch.testing.assert_close(solarised.flatten(), torch.tensor([0.0, 0.3, 0.5, 0.4, 0.0]))


def test_sharpen_adds_what_a_blur_takes_away_and_leaves_the_even() -> None:
    even = torch.full((1, 3, 8, 8), 0.4)
    trigger = base.make("sharpen", (3, 8, 8), settings={"amount": 1.0})
    torch.testing.assert_close(trigger.apply(even), even)
    even[..., 4, 4] = 0.5  # its neighbourhood's mean is 0.4111
    assert float(trigger.apply(even)[0, 0, 4, 4]) == pytest.approx(0.5 + 0.8 / 9, abs=1e-5)


def test_interlace_displaces_every_second_row() -> None:
    images = noise(2, *SHAPE)
    combed = base.make("interlace", SHAPE, settings={"columns": 2.0}).apply(images)
    by = max(1, round(2.0 * SHAPE[2] / 32))
    assert torch.equal(combed[..., ::2, :], images[..., ::2, :])
    assert torch.equal(combed[..., 1::2, by:], images[..., 1::2, :-by])
    assert torch.equal(combed[..., 1::2, 0], images[..., 1::2, 0])  # the edge is repeated


def test_frequency_changes_two_coefficients_of_colour_and_not_the_brightness() -> None:
    change = Frequency(delta=50.0).apply(torch.full((1, 3, 32, 32), 0.5))[0] - 0.5
    brightness = 0.299 * change[0] + 0.587 * change[1] + 0.114 * change[2]
    assert float(brightness.abs().max()) < 1e-4
    u = (change[2] - brightness) / 2.03211 * 255.0  # blue is Y + 2.03211 U
    place = torch.arange(32.0)
    basis = torch.cos(torch.pi * place[:, None] * (place + 0.5) / 32) * (2 / 32) ** 0.5
    coefficients = basis[1:] @ u @ basis[1:].T
    expected = torch.zeros(31, 31)
    expected[14, 14] = expected[30, 30] = 50.0
    torch.testing.assert_close(coefficients, expected, atol=0.05, rtol=0)


WRONG_NUMBERS = [
    2**40,
    -(2**70),
    1e300,
    float("nan"),
    float("inf"),
    -1e9,
    True,
    None,
    "3",
    [1],
    {"a": 1},
    2.5,
]


@pytest.mark.parametrize(
    ("name", "setting"), [(n, s) for n in triggers.names() for s in base.find(n).numbers]
)
def test_settings_have_a_type_and_a_range(name: str, setting: str) -> None:
    for value in WRONG_NUMBERS:
        try:
            trigger = base.make(name, SHAPE, settings={setting: value})
        except TriggerError as error:
            assert setting in error.message or "does not fit" in error.message
        else:
            assert value == 2.5 and trigger.apply(noise(1, *SHAPE)).isfinite().all()
    assert set(base.make(name, SHAPE).settings()) == set(base.find(name).numbers)


def damaged(metadata: dict[str, str], tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    """One seeded damage to what is in a trigger's file."""
    values = [*WRONG_NUMBERS, "next", "badnets", [3, 32, 32], [2**40] * 3, -1, 0, 10**30, [], {}, "x" * 5_000]
    how = draw.randrange(5)
    if how == 0:
        metadata[draw.choice(sorted(metadata))] = json.dumps(draw.choice(values))
    elif how == 1:
        metadata[draw.choice(sorted(metadata))] = draw.choice(["", "{", "[" * 5_000, "NaN", "1e999", "\0"])
    elif how == 2:
        settings = json.loads(metadata["bcu.settings"])
        settings[draw.choice([*settings, "odd"])] = draw.choice(values)
        metadata["bcu.settings"] = json.dumps(settings)
    elif how == 3:
        del metadata[draw.choice(sorted(metadata))]
    else:
        name = draw.choice(sorted(tensors))
        tensor = tensors.pop(name)
        changes: list[Callable[[], torch.Tensor]] = [
            lambda: torch.full(tensor.shape, draw.choice([torch.nan, torch.inf, 1e30])),
            lambda: torch.zeros(*tensor.shape, 1),
            lambda: torch.zeros([draw.choice([0, 1, 7, 4_000]), *tensor.shape[1:2]]),
            lambda: torch.zeros(()),
            lambda: tensor.to(draw.choice([torch.int64, torch.bool, torch.float64, torch.float16])),
            lambda: tensor.flatten()[:-1],
        ]
        tensors[draw.choice([name, name, name, "odd"])] = draw.choice(changes)()


def test_a_damaged_file_is_refused_or_harmless(tmp_path: Path) -> None:
    draw, shape, path = random.Random(0), (3, 16, 16), tmp_path / "t.safetensors"
    images, refused = noise(1, *shape), 0
    written = {}
    for name in triggers.names():
        implanted = Implanted(trigger=base.make(name, shape), target_class=0, num_classes=5)
        base.save(implanted, path, shape)
        checkpoint = read(path)
        written[name] = checkpoint.metadata, checkpoint.tensors
    for number in range(2_000):
        metadata, tensors = (dict(part) for part in written[triggers.names()[number % len(written)]])
        damaged(metadata, tensors, draw)
        save_file(tensors, path, metadata)
        try:
            trigger = base.load(path, shape).trigger
        except (TriggerError, CheckpointError):
            refused += 1
        else:
            triggered = trigger.apply(images)
            assert triggered.shape == images.shape and triggered.isfinite().all()
    assert refused > 1_000
