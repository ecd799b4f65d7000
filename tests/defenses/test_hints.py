"""What enters a network's last layer, and what is made of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bcu_cli.defenses.hints import hint_loss, hints, last_layer
from bcu_cli.models import build

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("arch", "name", "shape"),
    [
        ("resnet8", "fc", (2, 64)),
        ("vgg16_bn_cifar", "classifier", (2, 512)),
        ("timm:vit_tiny_patch16_224", "head", (2, 192)),
        ("timm:mobilenetv3_small_050", "classifier", (2, 1024)),
    ],
)
def test_it_is_the_classifier_that_features_enter(arch: str, name: str, shape: tuple[int, ...]) -> None:
    images = IMAGES if "timm" not in arch else torch.rand(2, 3, 224, 224)
    network = build(arch, num_classes=4).eval()
    assert last_layer(network, images) == name
    with torch.no_grad(), hints(network, name) as seen:
        network(images)
    assert [tuple(each.shape) for each in seen] == [shape]


def test_nothing_is_seen_afterwards() -> None:
    network = build("resnet8", num_classes=4).eval()
    with hints(network, "fc") as seen:
        network(IMAGES)
    network(IMAGES)
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_torchscript_shows_nothing() -> None:
    network = torch.jit.trace(build("resnet8", num_classes=4).eval(), IMAGES)
    assert last_layer(network, IMAGES) == ""
    with hints(network, "") as seen:
        network(IMAGES)
    assert seen == []


class _Pooling(nn.Module):
    """One row for a whole batch enters its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.mean((0, 2, 3))[None]).expand(len(images), -1)  # type: ignore[no-any-return]


class _Twice(_Pooling):
    """Its layer is used twice."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.mean((2, 3))
        return self.layer(rows) + self.layer(rows.flip(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("network", [_Pooling(), _Twice()])
def test_what_is_no_row_for_each_image_is_left_alone(network: nn.Module) -> None:
    assert last_layer(network, IMAGES) == ""


def test_features_are_compared_on_their_own_scale() -> None:
    theirs = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
    assert hint_loss(theirs, theirs) == 0.0
    for scale in (0.01, 1.0, 100.0):
        assert float(hint_loss(torch.zeros(8, 5), scale * theirs)) == pytest.approx(1.0)
        assert float(hint_loss(1.5 * scale * theirs, scale * theirs)) == pytest.approx(0.25, rel=1e-4)


def test_features_that_are_all_nothing_are_no_division_by_it() -> None:
    assert hint_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0.0
