"""The property that each paper claims of its defense."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from defending import defense, pictures, run, small
from torch.nn import functional as F

from bcu_cli.defenses import anp, clp, i_bau, mcr, nad
from bcu_cli.defenses.parts.feature_maps import last_of_each_resolution, recorded
from bcu_cli.models import build
from bcu_cli.models.channels import find_channels

if TYPE_CHECKING:
    from torch import Tensor


def test_clp_cuts_what_lies_above_the_mean_by_u_deviations() -> None:
    bounds = torch.tensor([1.0] * 15 + [17.0])  # mean 2, deviation sqrt(15)
    assert clp.outliers(bounds, 3.87).tolist() == [15]
    assert clp.outliers(bounds, 3.88).tolist() == []


def test_clp_cuts_a_channel_that_was_made_sensitive_and_it_carries_nothing_then() -> None:
    model = small()
    with torch.no_grad():
        model.network[5].weight[3] = 50.0
    cleansing = defense("clp", model, u=2.0)
    run(cleansing)
    pruned = {layer["name"]: layer["pruned"] for layer in cleansing.details()["pruned"]}
    assert pruned["4"] == [3]
    maps = cleansing.student.network[:7](torch.randn(4, 3, 8, 8))
    assert maps[:, 3].abs().max() == 0
    assert maps[:, 4].abs().max() > 0


def test_fine_pruning_prunes_the_least_active_and_they_stay_pruned() -> None:
    cleansing = defense("fp", accuracy_drop=0.3)
    teacher = copy.deepcopy(cleansing.teacher)
    run(cleansing)
    (layer,) = cleansing.details()["pruned"]
    assert layer["name"] == "4"
    assert 0 < len(layer["pruned"]) < 8
    images = pictures().images / 255.0
    with torch.no_grad():
        active = teacher.network[:7]((images - 0.5) / 0.25).mean((0, 2, 3))  # after its norm and ReLU
        after = cleansing.student.network[:7]((images - 0.5) / 0.25)
    kept = [channel for channel in range(8) if channel not in layer["pruned"]]
    assert active[layer["pruned"]].max() <= active[kept].min()
    assert after[:, layer["pruned"]].abs().max() == 0
    accuracy = cleansing.details()["accuracy_when_pruned"]
    assert accuracy["after"] >= accuracy["before"] - 0.3


def test_anp_looks_for_a_disturbance_within_epsilon_that_harms() -> None:
    model = small()
    masks = anp.Masks(model, find_channels(model.network, torch.zeros(1, 3, 8, 8)))
    images, labels = pictures().images / 255.0, pictures().labels
    whole = list(masks.values)
    torch.manual_seed(0)
    found = masks.worst_perturbation(images, labels, 0.3)
    assert max(float(each.abs().max()) for each in found) <= 0.3 + 1e-6
    disturbed = [mask + delta for mask, delta in zip(whole, found[:2], strict=True)]
    harmed = masks.cross_entropy(images, labels, disturbed, found[2:])
    untouched = masks.cross_entropy(images, labels, whole, None)
    assert untouched.item() == pytest.approx(F.cross_entropy(model(images), labels).item())
    assert harmed > untouched


def test_anp_learns_masks_with_the_statistics_of_the_batch_and_keeps_those_of_the_network() -> None:
    model = small()
    masks = anp.Masks(model, find_channels(model.network, torch.zeros(1, 3, 8, 8))).train()
    images, labels, whole = pictures().images / 255.0, pictures().labels, list(masks.values)
    before = copy.deepcopy(model.state_dict())
    trained = copy.deepcopy(model).train()
    found = masks.cross_entropy(images, labels, whole, None)
    assert found.item() == pytest.approx(F.cross_entropy(trained(images), labels).item())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert masks.eval().cross_entropy(images, labels, whole, None) == F.cross_entropy(model(images), labels)


def test_anp_changes_nothing_but_the_weights_of_what_it_prunes() -> None:
    cleansing = defense("anp", steps=8, threshold=0.9)
    before = copy.deepcopy(cleansing.student.state_dict())
    run(cleansing)
    pruned = {layer["name"]: layer["pruned"] for layer in cleansing.details()["pruned"]}
    masks = dict(zip(pruned, cleansing.masks, strict=True))
    assert any(pruned.values())
    for name, norm in (("0", "1"), ("4", "5")):
        assert pruned[name] == (masks[name] < 0.9).nonzero()[:, 0].tolist()
        before[f"network.{norm}.weight"][pruned[name]] = 0
    assert all(torch.equal(before[key], value) for key, value in cleansing.student.state_dict().items())


def test_the_attention_of_nad_is_where_the_squares_are() -> None:
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0, 0, 0], maps[0, 1, 0, 0], maps[0, 0, 1, 1] = 1.0, -1.0, 2.0
    expected = torch.tensor([[2.0, 0.0, 0.0, 4.0]]) / 20**0.5
    assert torch.allclose(nad.attention(maps), expected)
    assert torch.allclose(nad.attention(3 * maps), expected)
    other = nad.attention(torch.ones(1, 2, 2, 2))  # a half at each place
    distance = (expected - other).square().mean()
    assert nad.attention_loss({"a": maps}, {"a": torch.ones(1, 2, 2, 2)}) == pytest.approx(distance.item())


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet8", ["layer1", "layer2", "layer3"]),
        ("wrn16_1", ["layer2.0.bn1", "layer3.0.bn1", "relu"]),
        ("vgg16_bn_cifar", ["features.22", "features.32", "features.42"]),
    ],
)
def test_nad_attends_to_the_end_of_each_resolution(arch: str, expected: list[str]) -> None:
    found = last_of_each_resolution(build(arch, num_classes=4).eval(), torch.zeros(1, 3, 32, 32), 3)
    assert found == expected


def attention_losses(beta: float) -> tuple[float, float]:
    """Before and after the distillation, on the images that it learns on."""
    still = {"batch_size": 64, "crop_padding": 0, "flip": False, "learning_rate": 0.01}
    cleansing = defense("nad", epochs=60, teacher_epochs=30, beta=beta, **still)
    images = pictures().images / 255.0
    stages = cleansing.stages()
    guide = next(stages).training
    guide.run()

    def loss() -> float:
        maps = []
        for model in (cleansing.student, guide.model):
            with torch.no_grad(), recorded(model.network, cleansing.layers) as seen:
                model.eval()(images)
            maps.append(seen)
        return float(nad.attention_loss(*maps))

    distilling = next(stages).training
    before = loss()
    distilling.run()
    return before, loss()


def test_the_attention_loss_of_nad_falls() -> None:
    before, after = attention_losses(1000.0)
    _, without = attention_losses(0.0)
    assert after < before
    assert after < without / 2


def test_the_ends_of_the_curve_of_mcr_are_the_two_models() -> None:
    cleansing = defense("mcr")
    ends: list[dict[str, Tensor]] = [dict(copy.deepcopy(cleansing.teacher).named_parameters())]
    for number, stage in enumerate(cleansing.stages()):
        stage.training.run()
        if number == 0:
            ends.append(dict(copy.deepcopy(stage.training.model).named_parameters()))
    start, end = cleansing.curve.at(0.0), cleansing.curve.at(1.0)
    assert not any(torch.equal(ends[0][name], ends[1][name]) for name in start)
    assert all(torch.equal(start[name], ends[0][name]) for name in start)
    assert all(torch.equal(end[name], ends[1][name]) for name in end)
    middle = cleansing.curve.bend
    assert any(not torch.allclose(middle[name], (start[name] + end[name]) / 2) for name in start)
    for name, weight in cleansing.student.named_parameters():
        expected = 0.49 * start[name] + 0.42 * middle[name] + 0.09 * end[name]  # t = 0.3
        assert torch.allclose(weight, expected, atol=1e-6)


def test_mcr_gives_the_norms_the_statistics_of_the_images() -> None:
    model, images = small(), pictures().images
    mcr.recompute_statistics(model, images, 64)
    seen = model.network[0]((images / 255.0 - 0.5) / 0.25)
    assert torch.allclose(model.network[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(model.network[1].running_var, seen.var((0, 2, 3)), rtol=1e-4)
    assert model.network[1].momentum == 0.1
    assert not model.network[1].training


def test_the_perturbation_of_i_bau_raises_the_loss_and_stays_within_its_radius() -> None:
    model, data = small(), pictures()
    images = data.images / 255.0

    def loss(perturbation: Tensor) -> Tensor:
        return F.cross_entropy(model(images + perturbation), data.labels)

    options = i_bau.IBauOptions(radius=2.0, inner_steps=6)
    found = i_bau.universal_perturbation(loss, images[:1], options)
    assert found.shape == (1, 3, 8, 8)
    assert found.norm() <= 2.0 + 1e-5
    assert loss(found) > loss(torch.zeros_like(found)) + 0.1


def test_the_hypergradient_of_i_bau_is_that_of_the_implicit_function() -> None:
    """Against Jacobians of the projected step, written out for a loss of three weights."""
    curved = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 0.5]])
    weights = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    found = torch.tensor([0.6, 0.8, 0.0]).view(1, 1, 1, 3)  # on the edge of a ball of 1
    steps, radius = 3, 1.0

    def loss_of(delta: Tensor, theta: Tensor) -> Tensor:
        return theta.square() @ delta + 0.5 * delta @ curved @ delta

    def step(delta: Tensor, theta: Tensor) -> Tensor:
        slope = theta.square() + curved @ delta
        moved = delta + radius / 4 * slope / slope.norm()
        return radius * moved / moved.norm()  # leaves the ball here

    flat, theta = found.flatten(), weights.detach()
    by_delta, by_theta = torch.autograd.functional.jacobian(step, (flat, theta))
    outer = theta.square() + curved @ flat
    solved = outer
    for _ in range(steps):
        solved = by_delta.T @ solved + outer
    expected = 2 * theta * flat + by_theta.T @ solved

    options = i_bau.IBauOptions(radius=radius, fixed_point_steps=steps)
    value = i_bau.with_hypergradient(lambda d: loss_of(d.flatten(), weights), found, options)
    (gradient,) = torch.autograd.grad(value, weights)
    assert value.item() == pytest.approx(loss_of(flat, theta).item())
    assert torch.allclose(gradient, expected, atol=1e-5)
    assert not torch.allclose(gradient, 2 * theta * flat, atol=1e-2)


def test_the_fixed_point_iteration_of_i_bau_ends_where_its_terms_grow() -> None:
    """Inside the ball a step up a valley drives perturbations apart: only the first term is left."""
    weights = torch.tensor([1.0, 2.0], requires_grad=True)
    found = torch.tensor([0.1, 0.0]).view(1, 1, 1, 2)

    def loss(delta: Tensor) -> Tensor:
        flat = delta.flatten()
        return (weights * flat).sum() + 50.0 * flat.square().sum()

    gradients = [
        torch.autograd.grad(
            i_bau.with_hypergradient(loss, found.clone(), i_bau.IBauOptions(fixed_point_steps=steps)), weights
        )[0]
        for steps in (0, 5, 50)
    ]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
