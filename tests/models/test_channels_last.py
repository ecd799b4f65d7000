from __future__ import annotations

import pytest
import torch
from defending import classifier, defense, pictures, run
from torch import Tensor, nn

from bcu_cli import defenses
from bcu_cli.models.classifier import place
from bcu_cli.models.loading import as_classifier
from bcu_cli.models.new_classifier import new_classifier
from bcu_cli.models.preprocessing import Preprocessing

SIZE = (3, 8, 8)
"""Shape of the images of ``pictures``."""


class ByView(nn.Module):
    """Flattens feature maps by ``view``, as LeNet and much code of tutorials do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.second, self.second_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 3 * 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.conv(x)).relu())
        x = self.second_norm(self.second(x)).relu()
        return self.fc(x.view(x.size(0), -1))


class InFiveDimensions(nn.Module):
    """Has weights of five dimensions, as the Lambda networks of timm do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.position = nn.Parameter(torch.rand(4, 1, 3, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        position = nn.functional.conv3d(x[:, None], self.position, padding=(0, 1, 0)).mean((2, 3, 4))
        return self.fc(self.conv(x).mean((2, 3)) + position)


def preprocessing() -> Preprocessing:
    return Preprocessing(input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, source="test")


@pytest.mark.parametrize(("network", "takes"), [(ByView, False), (InFiveDimensions, True)])
def test_whether_a_network_takes_channels_last_is_tried(network: type[nn.Module], takes: bool) -> None:
    torch.manual_seed(0)
    model, _ = as_classifier(network(), preprocessing(), "the network")
    assert model.channels_last is takes
    assert model.network.conv.weight.is_contiguous()  # until it is placed
    place(model, torch.device("cpu"))
    assert model.network.conv.weight.is_contiguous(memory_format=torch.channels_last) is takes
    inputs = torch.rand(2, *SIZE).contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model(inputs), model(inputs.contiguous()), atol=1e-6)


def test_a_new_network_takes_channels_last() -> None:
    assert new_classifier("resnet8", 4, pictures().images, seed=0).channels_last


@pytest.mark.parametrize("name", defenses.names())
def test_every_method_runs_a_network_that_does_not_take_it(name: str) -> None:
    made = defense(name, classifier(ByView()))
    run(made)
    images = pictures().images.contiguous(memory_format=torch.channels_last)
    assert made.student.eval()(images.float() / 255.0).isfinite().all()
