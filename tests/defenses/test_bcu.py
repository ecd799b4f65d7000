from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bcu_cli.defenses.base import decide
from bcu_cli.defenses.bcu import RATIOS, Bcu, BcuOptions, distillation_loss, reinitialise
from bcu_cli.defenses.parts.reinit_ratios import INITS, ratio_of, ratios_of
from bcu_cli.errors import UsageError
from bcu_cli.images.folder import ImageSet
from bcu_cli.models import Classifier, Preprocessing, build
from bcu_cli.training.devices import Device

CPU = Device(torch=torch.device("cpu"), precision="fp32")
EXAMPLE = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_the_share_reinitialised_in_each_layer_is_delta_within_sampling_error(strength: float) -> None:
    teacher = build("resnet18_cifar_w16", num_classes=10).eval()
    for parameter in teacher.parameters():
        nn.init.constant_(parameter, 9.0)  # far from what is drawn, so that no weight is drawn as it was
    student = copy.deepcopy(teacher)
    report = {layer.name: layer for layer in reinitialise(student, EXAMPLE, BcuOptions(strength=strength))}
    before, after = teacher.state_dict(), student.state_dict()
    assert len(report) == 21
    for name, layer in report.items():
        keys = [key for key in (f"{name}.weight", f"{name}.bias") if key in before]
        changed = sum(int((before[key] != after[key]).sum()) for key in keys)
        total = sum(before[key].numel() for key in keys)
        error = 4 * (layer.ratio * (1 - layer.ratio) / total) ** 0.5
        assert layer.ratio == ratio_of(layer.depth, 18, BcuOptions(strength=strength))
        assert (layer.weights, layer.reinitialised_weights) == (total, changed)
        assert changed / total == pytest.approx(layer.ratio, abs=max(error, 2 / total)), name


def test_what_is_drawn_is_what_a_fresh_layer_has() -> None:
    student = nn.Sequential(nn.Conv2d(3, 64, 5, bias=True), nn.Flatten(), nn.Linear(64 * 28 * 28, 10))
    for parameter in student.parameters():
        nn.init.constant_(parameter, 9.0)
    reinitialise(student, EXAMPLE, BcuOptions(ratios=(1.0, 1.0, 1.0)))
    fresh = nn.Conv2d(3, 64, 5)
    for drawn, expected in zip(student[0].parameters(), fresh.parameters(), strict=True):
        assert drawn.abs().max() <= 75**-0.5
        assert drawn.std().item() == pytest.approx(expected.std().item(), rel=0.3)


def test_normalisation_layers_are_kept() -> None:
    student = build("resnet20", num_classes=10).eval()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    reinitialise(student, EXAMPLE, BcuOptions(ratios=(1.0, 1.0, 1.0)))
    norms = [name for name, module in student.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name in norms:
        assert torch.equal(before[f"{name}.weight"], student.state_dict()[f"{name}.weight"])
        assert torch.equal(before[f"{name}.running_var"], student.state_dict()[f"{name}.running_var"])
    assert not torch.equal(before["conv1.weight"], student.state_dict()["conv1.weight"])


def test_strength_zero_leaves_the_student_the_teacher() -> None:
    student = build("resnet20", num_classes=10).eval()
    before = copy.deepcopy(student.state_dict())
    report = reinitialise(student, EXAMPLE, BcuOptions(strength=0))
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())
    assert {layer.reinitialised_weights for layer in report} == {0}


@given(deepest=st.integers(1, 200), strength=st.floats(0, 20))
def test_ratios_of_any_depth_are_shares_and_never_fall_between_the_ends(
    deepest: int, strength: float
) -> None:
    options = BcuOptions(strength=strength)
    ratios = [ratio_of(depth, deepest, options) for depth in range(1, deepest + 1)]
    assert all(0 <= ratio <= 1 for ratio in ratios)
    assert ratios[-1] == min(1, RATIOS[-1] * strength)
    assert ratios[:-1] == sorted(ratios[:-1])


def test_the_loss_is_the_kl_divergence_of_the_paper() -> None:
    teacher, student = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.5], [0.0, 0.0]])
    for temperature in (1.0, 4.0):
        p, q = (F.softmax(logits / temperature, 1) for logits in (teacher, student))
        expected = (p * (p / q).log()).sum(1).mean()
        assert distillation_loss(student, teacher, temperature).item() == pytest.approx(
            expected.item(), abs=1e-6
        )
    assert distillation_loss(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-7)
    second = distillation_loss(student[1:], teacher[1:], 2.0).item()
    weighted = distillation_loss(student, teacher, 2.0, torch.tensor([0.0, 3.0]))
    assert weighted.item() == pytest.approx(1.5 * second)


@pytest.mark.parametrize(
    ("images", "epochs"),
    [(2250, 100), (5000, 100), (20000, 100), (100_000, 21), (100, 900), (32, 900), (10**7, 1)],
)
def test_epochs_auto_is_the_papers_hundred_in_its_own_settings(images: int, epochs: int) -> None:
    options = BcuOptions(flip=False)
    pictures = torch.empty(1).expand(images, 3, 32, 32)
    assert decide(options, nn.Identity(), pictures, device=CPU).epochs == epochs


class Side(nn.Module):
    """Answers 0 if the left half of the image is the brighter one, else 1: a mirror changes its mind."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left, right = images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))
        return torch.stack([left, right], 1)


class Brightness(nn.Module):
    """Answers by the brightness alone, as a mirror does not change it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, 1 - mean], 1)


def test_the_teacher_is_asked_whether_mirror_images_are_of_their_class() -> None:
    images = torch.randint(
        0, 256, (200, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert decide(BcuOptions(), Brightness(), images, device=CPU).flip is True
    assert decide(BcuOptions(), Side(), images, device=CPU).flip is False
    assert decide(BcuOptions(flip=True), Side(), images, device=CPU).flip is True


def test_the_random_crop_is_the_papers_on_its_images_and_grows_with_them() -> None:
    for side, padding in ((32, 4), (64, 8), (224, 28)):
        images = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        assert decide(BcuOptions(), Brightness(), images, device=CPU).crop_padding == padding


def test_the_student_learns_from_the_teacher_and_the_teacher_stays_the_same() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)]
    as_they_are = Preprocessing(input_size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    teacher = Classifier(nn.Sequential(*layers), as_they_are, 4)
    images = torch.randint(
        0, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    before = copy.deepcopy(teacher.state_dict())
    options = BcuOptions(epochs=20, batch_size=32, ratios=(0.5, 0.5, 0.5), learning_rate=0.05, crop_padding=0)
    (stage,) = Bcu(teacher, ImageSet(images=images), options, device=CPU).stages()
    losses: list[float] = []
    stage.training.run(on_epoch=lambda epoch: losses.append(epoch.loss))
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {"strength": -1.0},
        {"strength": float("nan")},
        {"ratios": (0.1, 0.2)},
        {"ratios": (0.1, 1.2, 0.1)},
        {"temperature": (0.0, 4.0)},
        {"temperature": (1.0, float("inf"))},
        {"init": "layer:5"},
        {"init": "increasing"},
        {"targets": "warm"},
    ],
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        BcuOptions(**options)


def shares(init: str, strength: float = 1.0) -> tuple[list[int], list[int], list[float]]:
    """Depth, weights and ratio of each layer of the paper's ResNet-18."""
    from bcu_cli.defenses.parts.depth import measure

    with torch.device("meta"):
        layers = measure(build("resnet18_cifar", num_classes=10), torch.zeros(1, 3, 32, 32))
    depths = [layer.depth for layer in layers]
    weights = [sum(weight.numel() for weight in layer.weights.values()) for layer in layers]
    return depths, weights, ratios_of(depths, weights, BcuOptions(init=init, strength=strength))


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("init", ["uniform", "decreasing", "layer:3", "layer:4"])
def test_every_initialisation_reinitialises_as_many_weights(init: str, strength: float) -> None:
    _, weights, adaptive = shares("adaptive", strength)
    _, _, ratios = shares(init, strength)
    wanted, drawn = (sum(r * n for r, n in zip(each, weights, strict=True)) for each in (adaptive, ratios))
    if init == "layer:3":  # a fifth of all weights is what its quarter of the depth has at most
        assert drawn == pytest.approx(min(wanted, sum(n for n, r in zip(weights, ratios, strict=True) if r)))
    else:
        assert drawn == pytest.approx(wanted)
    assert wanted / sum(weights) == pytest.approx(0.22 * strength, abs=0.02 * strength)  # "around 0.2"


def test_the_initialisations_are_what_their_names_say() -> None:
    depths, _, uniform = shares("uniform")
    assert len(set(uniform)) == 1
    by_depth = dict(zip(depths, shares("decreasing")[2], strict=True))
    between = [by_depth[depth] for depth in range(1, 18)]
    assert between == sorted(between, reverse=True)
    assert between[0] > between[-1]
    for quarter in range(1, 5):
        single = shares(f"layer:{quarter}")[2]
        touched = {depth for depth, ratio in zip(depths, single, strict=True) if ratio}
        assert touched == set(range(4 * quarter - 2, 4 * quarter + 2))  # the two blocks of a ResNet's stage
    assert len(INITS) == 7


def test_strength_zero_of_any_initialisation_draws_nothing() -> None:
    for init in INITS:
        assert max(shares(init, 0.0)[2]) == pytest.approx(0.0, abs=1e-9)


def test_hard_targets_are_the_classes_that_the_teacher_answers() -> None:
    from bcu_cli.defenses.bcu import distillation

    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    teacher, student = Side(), Brightness()
    index = torch.arange(6)
    expected = F.cross_entropy(student(images), teacher(images).argmax(1))
    hard = distillation(student, teacher, BcuOptions(targets="hard"))(images, index, 0.5)
    assert hard.item() == pytest.approx(expected.item())
    soft = distillation(student, teacher, BcuOptions())(images, index, 0.0)
    assert soft.item() == pytest.approx(distillation_loss(student(images), teacher(images), 1.0).item())
