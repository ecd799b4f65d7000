"""Small networks of kinds that bcu has none of: `--arch examples/calibration/networks.py:plain6`."""

from torch import nn

from bcu_cli.models.cifar import PreactBlock


def plain6(num_classes: int) -> nn.Module:
    """Six convolutions with BatchNorm and ReLU, average pooling, one linear layer: 0.11 M parameters."""
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (128, 2)):
        layers += [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def preact7(num_classes: int) -> nn.Module:
    """Three pre-activation blocks, each at half the resolution and twice the width: 0.3 M parameters."""
    blocks = [PreactBlock(width, 2 * width, 2) for width in (16, 32, 64)]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        *blocks,
        nn.BatchNorm2d(128),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, num_classes),
    )


def vgg6(num_classes: int) -> nn.Module:
    """`plain6` without BatchNorm, its convolutions with biases: 0.11 M parameters."""
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (128, 2)):
        convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        layers += [convolution, nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
