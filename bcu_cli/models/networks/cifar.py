"""The built-in networks for small images (about 32x32 pixels).

All of them keep the resolution in the stem (3x3 convolution, stride 1, no max-pool). They end in global
average pooling and one linear layer, so that they take any input size. Weights are initialised from torch's
global generator: convolutions as in He et al. 2015 (fan out), BatchNorm at identity.

Papers: He et al. 2016a, "Deep Residual Learning for Image Recognition" (``resnet*``); He et al. 2016b,
"Identity Mappings in Deep Residual Networks" (``preact_resnet18``); Zagoruyko & Komodakis 2016, "Wide
Residual Networks" (``wrn*``); Simonyan & Zisserman 2015, "Very Deep Convolutional Networks"
(``vgg*``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """A shortcut where the shape changes: a 1x1 convolution with BatchNorm; None where it does not."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def initialise(network: nn.Module) -> None:
    """Draw the weights of all convolutions as in He et al. 2015 (fan out); their biases become 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to a shortcut (He et al. 2016a, Fig. 5 left).

    Where the shape changes, the shortcut is a 1x1 convolution with BatchNorm ("option B").
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.relu(out + shortcut)
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions with BatchNorm, added to a shortcut (He et al. 2016a, Fig. 5).

    The last convolution has four times ``width`` channels.
    """

    expansion = 4

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        width = out_channels // self.expansion
        self.conv1 = _conv1x1(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv1x1(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        result: Tensor = self.relu(self.bn3(self.conv3(out)) + shortcut)
        return result


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut without parameters (He et al. 2016a, "option A").

    Where the shape changes, the shortcut takes every second pixel and adds channels of zeros: half of them
    before and half behind, or all behind.
    """

    all_behind = False

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.stride, added = stride, out_channels - in_channels
        before = 0 if self.all_behind else added // 2
        self.added = (before, added - before)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        shortcut = x
        if self.stride != 1 or any(self.added):
            every_second = x[:, :, :: self.stride, :: self.stride]
            shortcut = nn.functional.pad(every_second, (0, 0, 0, 0, *self.added))
        out = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(out)) + shortcut)
        return result


class PaddedBehindBlock(PaddedBlock):
    """:class:`PaddedBlock` with all channels of zeros behind the others."""

    all_behind = True


class PreactBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions (He et al. 2016b, Fig. 1b).

    Where the shape changes, the shortcut is a bare 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        activated = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        result: Tensor = self.branch(activated) + shortcut
        return result

    def branch(self, activated: Tensor) -> Tensor:
        """The convolved branch, ``[N, C_out, H / stride, W / stride]``, of the activated input."""
        out: Tensor = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        return out


def _stage(
    block: Callable[[int, int, int], nn.Module], in_channels: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    """One stage: ``depth`` blocks, the first of which changes width and resolution."""
    first = block(in_channels, width, stride)
    return nn.Sequential(first, *(block(width, width, 1) for _ in range(depth - 1)))


class CifarResNet(nn.Module):
    """A residual network for small images, with torchvision's tensor names.

    Args:
        depths: Blocks per stage; every stage but the first halves the resolution.
        widths: Channels per stage.
        num_classes: Outputs of the last layer.
        in_channels: Channels of the input.
        block: The residual block.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        in_channels: int,
        block: Callable[[int, int, int], nn.Module] = BasicBlock,
    ) -> None:
        super().__init__()
        stem_width = widths[0] // getattr(block, "expansion", 1)
        self.conv1 = _conv3x3(in_channels, stem_width)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.stages = add_stages(self, block, depths, stem_width, widths)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]``, normalised, to logits ``[N, num_classes]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = getattr(self, name)(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class PreactResNet(nn.Module):
    """A pre-activation residual network for small images: ResNet-18's shape or a wide residual network.

    Args:
        depths: Blocks per stage; every stage but the first halves the resolution.
        stem_width: Channels of the first convolution.
        widths: Channels per stage.
        num_classes: Outputs of the last layer.
        in_channels: Channels of the input.
        last_norm: Whether a BatchNorm and a ReLU follow the last block, as in the paper.
    """

    def __init__(
        self,
        depths: Sequence[int],
        stem_width: int,
        widths: Sequence[int],
        num_classes: int,
        in_channels: int,
        *,
        last_norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, stem_width)
        self.stages = add_stages(self, PreactBlock, depths, stem_width, widths)
        self.bn: nn.Module | None = nn.BatchNorm2d(widths[-1]) if last_norm else None
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]``, normalised, to logits ``[N, num_classes]``."""
        x = self.conv1(x)
        for name in self.stages:
            x = getattr(self, name)(x)
        x = x if self.bn is None else self.relu(self.bn(x))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def add_stages(
    network: nn.Module,
    block: Callable[[int, int, int], nn.Module],
    depths: Sequence[int],
    stem_width: int,
    widths: Sequence[int],
) -> tuple[str, ...]:
    """Register the stages as ``layer1``, ``layer2``, … of ``network`` and return their names in order."""
    names = []
    in_channels = stem_width
    for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        name = f"layer{i + 1}"
        network.add_module(name, _stage(block, in_channels, width, depth, stride=1 if i == 0 else 2))
        names.append(name)
        in_channels = width
    return tuple(names)


class CifarVgg(nn.Module):
    """VGG with BatchNorm for small images: one linear layer in place of the three of the paper.

    Args:
        widths: Output channels per convolution; 0 is a 2x2 max-pool. It rounds sizes up, so that inputs
            under 32 pixels pass too; at multiples of 32 this changes nothing.
        num_classes: Outputs of the last layer.
        in_channels: Channels of the input.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
                continue
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]``, normalised, to logits ``[N, num_classes]``."""
        pooled = torch.flatten(self.avgpool(self.features(x)), 1)
        logits: Tensor = self.classifier(pooled)
        return logits


def doubling(first: int, stages: int = 4) -> tuple[int, ...]:
    """Channels of the stages, which double from one to the next."""
    return tuple(first * 2**stage for stage in range(stages))


def _resnet(
    depths: Sequence[int],
    num_classes: int,
    in_channels: int = 3,
    *,
    width: int,
    block: type[BasicBlock | Bottleneck | PaddedBlock] = BasicBlock,
) -> nn.Module:
    widths = doubling(width * getattr(block, "expansion", 1), len(depths))
    return CifarResNet(depths, widths, num_classes, in_channels, block)


def _preact_resnet(
    depths: Sequence[int],
    widening: int,
    num_classes: int,
    in_channels: int = 3,
    *,
    width: int,
    last_norm: bool = True,
) -> nn.Module:
    widths = doubling(width * widening, len(depths))
    return PreactResNet(depths, width, widths, num_classes, in_channels, last_norm=last_norm)


_VGG_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions before each max-pool, by the number of layers (Simonyan & Zisserman 2015, Table 1)."""


def _vgg(layers: int, num_classes: int, in_channels: int = 3, *, width: int) -> nn.Module:
    stages = zip(_VGG_DEPTHS[layers], (1, 2, 4, 8, 8), strict=True)
    widths = [one for depth, factor in stages for one in (*[width * factor] * depth, 0)]
    return CifarVgg(widths, num_classes, in_channels)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18_cifar": partial(_resnet, (2, 2, 2, 2), width=64),
    "resnet34_cifar": partial(_resnet, (3, 4, 6, 3), width=64),
    "resnet50_cifar": partial(_resnet, (3, 4, 6, 3), width=64, block=Bottleneck),
    "preact_resnet18": partial(_preact_resnet, (2, 2, 2, 2), 1, width=64),
    "preact_resnet18_no_last_bn": partial(_preact_resnet, (2, 2, 2, 2), 1, width=64, last_norm=False),
    "wrn16_1": partial(_preact_resnet, (2, 2, 2), 1, width=16),
    "wrn16_2": partial(_preact_resnet, (2, 2, 2), 2, width=16),
    "wrn28_10": partial(_preact_resnet, (4, 4, 4), 10, width=16),
    "wrn40_2": partial(_preact_resnet, (6, 6, 6), 2, width=16),
    **{f"vgg{layers}_bn_cifar": partial(_vgg, layers, width=64) for layers in _VGG_DEPTHS},
    **{f"resnet{6 * n + 2}": partial(_resnet, (n, n, n), width=16) for n in (1, 2, 3, 5, 7, 9, 18)},
    **{
        f"resnet{6 * n + 2}_{name}": partial(_resnet, (n, n, n), width=16, block=block)
        for name, block in (("padded", PaddedBlock), ("padded_behind", PaddedBehindBlock))
        for n in (3, 5, 7, 9, 18)
    },
}
"""Builders by name; each takes the number of classes, the input channels, and the ``width`` of the stem.

Deviation: the shortcuts of ``resnet8`` to ``resnet110`` (He et al. 2016a, section 4.2) are 1x1 convolutions
with BatchNorm (option B). The paper pads with zeros (option A), as those called ``padded`` do. The wide ones
(Zagoruyko & Komodakis 2016, Table 1) have no dropout, and the VGGs a single linear layer.
"""
