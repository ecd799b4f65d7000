"""Small networks of kinds that bcu has none of: `--arch examples/calibration/networks.py:plain6`."""

from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import MobileNetV2

from bcu_cli.models.networks.cifar import PreactBlock


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


def mobile6(num_classes: int) -> nn.Module:
    """MobileNetV2 with six inverted residuals, for small images: 0.18 M parameters."""
    stages = [[1, 16, 1, 1], [4, 24, 2, 1], [4, 32, 2, 2], [4, 64, 2, 1]]  # expansion, width, blocks, stride
    return MobileNetV2(num_classes, inverted_residual_setting=stages, dropout=0.0)


def vit4(num_classes: int) -> nn.Module:
    """A vision transformer of four layers, for images of 32x32 in patches of 4x4: 0.2 M parameters."""
    return VisionTransformer(
        img_size=32, patch_size=4, embed_dim=64, depth=4, num_heads=4, num_classes=num_classes
    )


def convnext5(num_classes: int) -> nn.Module:
    """ConvNeXt with five blocks of three widths, its stem halving the resolution: 0.2 M parameters."""
    return ConvNeXt(num_classes=num_classes, depths=(1, 1, 2, 1), dims=(16, 32, 64, 96), patch_size=2)
