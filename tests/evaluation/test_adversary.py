"""The adversary keeps its limits, learns to fool a network, and does not change the network's weights."""

from __future__ import annotations

import pytest
import torch
from defending import small
from torch import Tensor, nn

from bcu_cli.evaluation.adversary import KINDS, UNIVERSAL, Adversary, Limits, perturbation
from bcu_cli.evaluation.measures import Proportion

SHAPE, CLASSES, COUNT = (3, 16, 16), 4, 64
LIMITS = Limits(patch=0.05, perturbation=0.06, warp=0.125)
PATCH, PERTURBATION, WARP, PIXELS = (
    KINDS.index(kind) for kind in ("patch", "perturbation", "warp", "pixels")
)


def images() -> Tensor:
    return torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(0))


def driven(shape: tuple[int, int, int] = SHAPE) -> Adversary:
    """An adversary whose parameters are far beyond its limits, as a last step may leave them."""
    adversary = Adversary(range(CLASSES), shape, LIMITS, seed=0)
    with torch.no_grad():
        for parameter in adversary.parameters():
            parameter.mul_(1000.0)
    return adversary


class Brightness(nn.Module):
    """Class 0 for dark images and class 1 for bright ones; two more that it never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, seen: Tensor) -> Tensor:
        bright = self.scale * (seen.mean((1, 2, 3)) - 0.5)
        never = torch.full_like(bright, -9.0)
        return torch.stack([-bright, bright, never, never], dim=1)


def changed(adversary: Adversary, kind: int, slot: int = 1, shown: Tensor | None = None) -> Tensor:
    shown = images() if shown is None else shown
    counts = [len(shown) if each == kind else 0 for each in range(len(KINDS))]
    with torch.no_grad():
        return adversary(shown, torch.full((len(shown),), slot), counts)


@pytest.mark.parametrize("kind", range(len(UNIVERSAL)))
def test_what_comes_out_are_images(kind: int) -> None:
    out = changed(driven(), kind)
    assert out.shape == images().shape
    assert float(out.min()) >= 0.0
    assert float(out.max()) <= 1.0
    assert not torch.equal(out, images())


def test_a_perturbation_stays_within_its_radius() -> None:
    assert float((changed(driven(), PERTURBATION) - images()).abs().max()) <= LIMITS.perturbation + 1e-6


def test_a_patch_covers_no_more_than_its_share() -> None:
    masks, _ = driven()._patches(torch.arange(CLASSES))
    assert masks.mean((1, 2, 3)).tolist() == pytest.approx([LIMITS.patch] * CLASSES, rel=1e-4)


def test_a_warp_moves_no_pixel_further_than_its_radius() -> None:
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16).contiguous()
    out = changed(driven(), WARP, slot=0, shown=ramp)
    # Half a side is 0.5 of the ramp; bicubic interpolation may overshoot its control points a little.
    assert float((out - ramp).abs().max()) <= 1.5 * LIMITS.warp * 0.5


def test_the_pixels_that_matter_most_are_set_and_no_others() -> None:
    torch.manual_seed(0)
    out, _ = Adversary(range(CLASSES), SHAPE, LIMITS, seed=0).attack(Brightness(), images())
    touched = (out != images()).any(1).flatten(1)
    saturated = [row for row, image in zip(touched.sum(1).tolist(), out, strict=True) if is_saturated(image)]
    assert saturated
    assert max(saturated) <= int(LIMITS.patch * 16 * 16)


def is_saturated(image: Tensor) -> bool:
    """Whether only pixels that are black or white now differ from the image it was."""
    was = min(images(), key=lambda each: float((each != image).sum()))
    different = was != image
    return bool(different.any()) and bool(((image == 0) | (image == 1))[different].all())


def test_the_network_is_left_as_it_was_and_gets_no_gradient() -> None:
    network, adversary = small(), Adversary(range(CLASSES), (3, 8, 8), LIMITS, seed=0)
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    out, surrogate = adversary.attack(network, torch.rand(32, 3, 8, 8))
    surrogate.backward()
    assert float(surrogate.detach()) == 0.0
    assert not out.requires_grad
    assert network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adversary.parameters())


def test_it_learns_to_make_images_predicted_as_a_class() -> None:
    """A perturbation of 0.06 moves images over the threshold that are a little darker."""
    adversary, network = Adversary(range(CLASSES), SHAPE, LIMITS, seed=0), Brightness()
    dark = torch.full((COUNT, *SHAPE), 0.47)
    optimizer = adversary.optimizer()
    torch.manual_seed(0)
    for _ in range(30):
        optimizer.zero_grad()
        adversary.attack(network, dark)[1].backward()
        optimizer.step()
    out = changed(adversary, PERTURBATION, slot=1, shown=dark)
    with torch.no_grad():
        assert network(dark).argmax(1).unique().tolist() == [0]
        assert network(out).argmax(1).unique().tolist() == [1]


def test_it_mostly_samples_what_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch succeeds on 90 % for class 1, 50 % for class 2, else 0: odds of 7.5, 0.96 and 0, plus 0.1."""
    adversary = Adversary(range(CLASSES), SHAPE, LIMITS, seed=0)
    adversary.set_sampling_weights(
        {("patch", 1): Proportion(hits=9, of=10), ("patch", 2): Proportion(hits=5, of=10)}
    )
    calls: list[tuple[Tensor, list[int]]] = []
    monkeypatch.setattr(
        Adversary, "forward", lambda _, seen, slots, counts: calls.append((slots, counts)) or seen
    )
    torch.manual_seed(0)
    adversary.attack(Brightness(), torch.rand(4000, *SHAPE))
    slots, counts = calls[0]
    assert counts == pytest.approx([1000] * len(KINDS), abs=150)
    to = [torch.bincount(each, minlength=CLASSES) / len(each) for each in slots.split(counts)]
    assert to[PATCH].tolist() == pytest.approx([0.011, 0.86, 0.12, 0.011], abs=0.03)
    assert to[PIXELS].tolist() == pytest.approx([0.25] * CLASSES, abs=0.06)


def test_each_image_is_changed_in_its_own_way_alone() -> None:
    adversary, counts = driven(), [20, 10, 30, 4]
    with torch.no_grad():
        out = adversary(images(), torch.ones(COUNT, dtype=torch.int64), counts)
    for kind, (part, was) in enumerate(zip(out.split(counts), images().split(counts), strict=True)):
        alone = changed(adversary, kind, shown=was)
        torch.testing.assert_close(part, alone)
        assert torch.equal(part, was) == (kind == PIXELS)


def test_its_gradients_are_the_same_each_time() -> None:
    """With several threads, and enough images that each class's numbers are changed by many of them."""
    torch.manual_seed(0)
    adversary = Adversary(range(CLASSES), (3, 32, 32), LIMITS, seed=0)
    shown, slots = torch.rand(COUNT, 3, 32, 32), torch.randint(CLASSES, (COUNT,))
    counts = [COUNT // len(UNIVERSAL) + 1] * len(UNIVERSAL)
    counts[-1] = COUNT - sum(counts[:-1])
    aims = torch.randn(COUNT, 3, 32, 32)

    def gradients() -> list[Tensor]:
        out = adversary(shown, slots, [*counts, 0])
        return list(torch.autograd.grad((out * aims).sum(), list(adversary.parameters())))

    first = gradients()
    for _ in range(100):
        assert all(map(torch.equal, first, gradients()))


@pytest.mark.parametrize("classes", [10, 1000])
def test_its_memory_does_not_grow_with_the_size_of_large_images(classes: int) -> None:
    small, large = (Adversary(range(classes), (3, side, side), LIMITS, seed=0) for side in (64, 224))
    assert [p.shape for p in large.parameters()] == [p.shape for p in small.parameters()]


def test_on_large_images_changes_keep_their_limits() -> None:
    adversary, shown = driven((3, 224, 200)), torch.rand(2, 3, 224, 200)
    for kind in (PATCH, PERTURBATION):
        difference = (changed(adversary, kind, shown=shown) - shown).abs()
        assert difference.shape == (2, 3, 224, 200)
        if kind == PERTURBATION:
            assert float(difference.max()) <= LIMITS.perturbation + 1e-6
        else:
            masks = adversary._patches(torch.ones(2, dtype=torch.int64))[0].detach()
            assert float(masks.mean((1, 2, 3)).max()) <= LIMITS.patch + 1e-6


@pytest.mark.parametrize(("side", "cell"), [(32, 1), (224, 7), (64, 2), (16, 1), (30, 1)])
def test_a_patch_starts_where_and_as_it_is_given(side: int, cell: int) -> None:
    """A checkerboard of 3x3 cells in the lower right corner; the other slots keep their random start."""
    colours = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).expand(3, 3, 3)
    pixels = colours.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    adversary = Adversary(range(CLASSES), (3, side, side), LIMITS, seed=0)
    before = adversary.masks[0].clone()
    top = side - 3 * cell
    adversary.start_patch(1, pixels, top, top)
    shown = torch.full((1, 3, side, side), 0.5)
    out = changed(adversary, PATCH, slot=1, shown=shown)
    torch.testing.assert_close(out[0, :, top:, top:], pixels, atol=0.02, rtol=0.0)
    assert float((out - shown)[..., :top, :].abs().max()) < 0.01
    assert torch.equal(adversary.masks[0], before)


@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 32, 128), (3, 64, 256)])
def test_a_patch_smaller_than_a_cell_starts_all_the_same(shape: tuple[int, int, int]) -> None:
    for top in range(6):
        adversary = Adversary([0], shape, LIMITS, seed=0)
        adversary.start_patch(0, torch.ones(shape[0], 2, 2), top, top)
        assert float(adversary.masks[0].detach().max()) > 1.9


def test_a_patch_between_the_cells_of_a_large_image_starts_nearby() -> None:
    adversary, shown = Adversary([0], (3, 100, 100), LIMITS, seed=0), torch.zeros(1, 3, 100, 100)
    adversary.start_patch(0, torch.ones(3, 9, 9), 45, 45)
    out = changed(adversary, PATCH, slot=0, shown=shown)
    assert float(out[..., 47:53, 47:53].min()) > 0.9
    assert float(out[..., :40, :].max()) < 0.01


def test_a_perturbation_of_large_images_has_coarse_and_fine_parts_within_its_limit() -> None:
    coarse, fine = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    coarse[..., :16], coarse[..., 16:] = -0.1, 0.1
    fine[..., ::2] = 0.1
    parameters = torch.cat([coarse, fine], dim=1).requires_grad_()
    added = perturbation(parameters, (100, 130), 0.1)
    assert added.shape == (1, 3, 100, 130)
    assert float(added.detach().abs().max()) <= 0.1 + 1e-6
    left, right = added[0, 0, 0, :2].tolist(), added[0, 0, 0, -2:].tolist()
    assert left == pytest.approx([0.0, -0.1])  # neighbouring pixels differ
    assert right == pytest.approx([0.1, 0.1])  # 0.2 before it is clamped
    added.sum().backward()
    assert float(parameters.grad.min()) > 0.0  # type: ignore[union-attr]  # also where it is clamped
