"""Small networks of kinds that bcu has none of: `--arch examples/calibration/networks.py:plain6`."""

from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
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


def mobile(num_classes: int) -> nn.Module:
    """MobileNetV2's kind: a stem, six inverted residuals, a head; 0.10 M parameters."""
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True)]
    shapes = ((16, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 64, 2), (64, 64, 1))
    blocks = [InvertedResidual(i, o, stride=s, exp_ratio=4.0, act_layer=nn.ReLU6) for i, o, s in shapes]
    head = [nn.Conv2d(64, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU6(inplace=True)]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes)]
    return nn.Sequential(*stem, *blocks, *head, *end)


def vit(num_classes: int) -> nn.Module:
    """A vision transformer of four blocks on 64 patches of 4x4 pixels: 0.46 M parameters."""
    return VisionTransformer(
        img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, num_classes=num_classes
    )


def convnext(num_classes: int) -> nn.Module:
    """ConvNeXt of five blocks, its stem of 2x2 pixels: 0.59 M parameters."""
    return ConvNeXt(num_classes=num_classes, depths=(1, 1, 2, 1), dims=(24, 48, 96, 192), patch_size=2)
