"""Each kind of sinusoid has its direction, wavelength and amplitude."""

from __future__ import annotations

from math import pi

import pytest
import torch
from torch import Tensor

from bcu_cli.defenses.adversarial import sinusoids
from bcu_cli.defenses.adversarial.sinusoids import CYCLES, DIRECTIONS, NUM_KINDS, WAVELENGTHS

GREY = torch.full((1, 3, 64, 48), 128, dtype=torch.uint8)


def strongest(pattern: Tensor) -> tuple[float, float]:
    """Cycles across the longer side, and angle in [0, pi), of the strongest sinusoid in ``[H, W]``."""
    side = 256
    spectrum = torch.fft.fft2(pattern - pattern.mean(), s=(side, side)).abs()
    row, column = divmod(int(spectrum.argmax()), side)
    down, across = (each - side if each > side // 2 else each for each in (row, column))
    longest = max(pattern.shape)
    angle = torch.atan2(torch.tensor(float(down)), torch.tensor(float(across)))
    return (down**2 + across**2) ** 0.5 * longest / side, float(angle) % pi


@pytest.mark.parametrize("cell", [DIRECTIONS + 1, 2 * DIRECTIONS + 4, NUM_KINDS - DIRECTIONS - 2])
def test_a_sinusoid_is_of_its_kind(cell: int) -> None:
    generator = torch.Generator().manual_seed(0)
    many = sinusoids.draw(torch.full((20,), cell), generator).on_grid_of(torch.zeros(20, 3, 48, 64))
    assert many.shape == (20, 1, 48, 64)
    kind, direction = divmod(cell, DIRECTIONS)
    step = (CYCLES[1] / CYCLES[0]) ** (1 / WAVELENGTHS)
    for pattern in many[:, 0]:
        cycles, angle = strongest(pattern)
        assert CYCLES[0] * step**kind - 0.6 <= cycles <= CYCLES[0] * step ** (kind + 1) + 0.6
        off = (angle - (direction + 0.5) * pi / DIRECTIONS + pi / 2) % pi - pi / 2
        assert abs(off) <= 0.5 * pi / DIRECTIONS + 0.2
    assert len({tuple(pattern.flatten().tolist()) for pattern in many}) == 20


def test_one_of_each_changes_all_images_alike_and_the_seed_decides() -> None:
    changes = sinusoids.one_per_kind(0)
    assert len(changes) == NUM_KINDS
    patterns = [change(GREY.expand(2, -1, -1, -1)) for change in changes]
    for out in patterns:
        assert out.dtype == torch.uint8
        assert torch.equal(out[0], out[1])
        assert torch.equal(out[:, 0], out[:, 1])  # grey
        amplitude = (out.float() - 128.0).abs().max() / 255.0
        assert 0.8 * sinusoids.AMPLITUDE <= float(amplitude) <= sinusoids.AMPLITUDE + 0.003
    assert torch.equal(patterns[7], sinusoids.one_per_kind(0)[7](GREY.expand(2, -1, -1, -1)))
    assert not torch.equal(patterns[7], sinusoids.one_per_kind(1)[7](GREY.expand(2, -1, -1, -1)))


def test_kinds_are_drawn_by_their_weights() -> None:
    weights = torch.zeros(NUM_KINDS)
    weights[2 * DIRECTIONS + 4] = 1.0
    shown = torch.full((40, 3, 48, 64), 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = sinusoids.add_sinusoids(shown, weights)
    step = (CYCLES[1] / CYCLES[0]) ** (1 / WAVELENGTHS)
    for image in out:
        cycles, _ = strongest(image.mean(0))
        assert CYCLES[0] * step**2 - 0.6 <= cycles <= CYCLES[0] * step**3 + 0.6
    strength = (out - shown).abs().amax((1, 2, 3))
    assert 0.8 * sinusoids.AMPLITUDES[0] <= float(strength.median()) <= sinusoids.AMPLITUDES[1]
    coloured = ((out - out[:, :1]).abs().amax((1, 2, 3)) > 1e-6).float().mean()
    assert 0.1 < float(coloured) < 0.5
    assert len(sinusoids.add_sinusoids(shown[:0], weights)) == 0


def test_bright_and_dark_images_stay_images() -> None:
    for value in (0, 255):
        out = sinusoids.one_per_kind(0)[20](torch.full_like(GREY, value))
        assert int(out.min()) >= 0
        assert len(out.unique()) > 10  # half of the sinusoid is clipped, and nothing wraps around
        assert float((out.float() - value).abs().max()) <= 255.0 * sinusoids.AMPLITUDE + 1.0
