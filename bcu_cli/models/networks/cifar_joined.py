"""Built-in networks that join features or weigh channels, for images of about 32x32 pixels.

All keep the resolution in the stem. Weights are initialised as in :mod:`bcu_cli.models.networks.cifar`.

Papers: Huang et al. 2017, "Densely Connected Convolutional Networks"; Szegedy et al. 2015, "Going Deeper
with Convolutions"; Hu et al. 2018, "Squeeze-and-Excitation Networks"; Yu et al. 2018, "Deep Layer
Aggregation".
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bcu_cli.models.networks.cifar import BasicBlock, PreactBlock, add_stages, doubling, initialise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _conv_norm(in_channels: int, out_channels: int, kernel: int = 3, *, bias: bool = False) -> nn.Sequential:
    """A convolution, BatchNorm and ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _norm_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """BatchNorm, ReLU and a convolution without bias."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), convolution)


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, whose output joins the input (Huang et al. 2017, DenseNet-B).

    Args:
        in_channels: Channels of the input.
        growth: Channels that the layer adds.
        newest_first: Whether they stand before the input's channels, and not behind.
    """

    def __init__(self, in_channels: int, growth: int, *, newest_first: bool) -> None:
        super().__init__()
        self.bottleneck = _norm_conv(in_channels, 4 * growth, 1)
        self.convolution = _norm_conv(4 * growth, growth, 3)
        self.newest_first = newest_first

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C + growth, H, W]``."""
        out = self.convolution(self.bottleneck(x))
        return torch.cat([out, x] if self.newest_first else [x, out], 1)


class DenseNet(nn.Module):
    """DenseNet-BC, which halves channels and resolution between its blocks (Huang et al. 2017, section 3).

    Args:
        depths: Layers per dense block.
        growth: Channels that a layer adds.
        num_classes: Outputs of the last layer.
        in_channels: Channels of the input.
        newest_first: As in :class:`DenseLayer`.
    """

    def __init__(
        self, depths: Sequence[int], growth: int, num_classes: int, in_channels: int, *, newest_first: bool
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        for i, depth in enumerate(depths):
            if i > 0:
                layers += [_norm_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range(depth):
                layers.append(DenseLayer(channels, growth, newest_first=newest_first))
                channels += growth
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]``, normalised, to logits ``[N, num_classes]``."""
        x = self.bn(self.layers(self.conv1(x))).relu()
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class Inception(nn.Module):
    """Four parallel branches (Szegedy et al. 2015, Fig. 2b), with BatchNorm.

    Two 3x3 convolutions take the place of the 5x5 one.

    Args:
        in_channels: Channels of the input.
        widths: Channels of the 1x1 convolution, of the reduction before 3x3, of 3x3, of the reduction before
            5x5, of 5x5, and behind the max-pool.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        one, before_three, three, before_five, five, pooled = widths
        self.branch1 = _conv_norm(in_channels, one, 1, bias=True)
        self.branch2 = nn.Sequential(
            _conv_norm(in_channels, before_three, 1, bias=True),
            _conv_norm(before_three, three, 3, bias=True),
        )
        self.branch3 = nn.Sequential(
            _conv_norm(in_channels, before_five, 1, bias=True),
            _conv_norm(before_five, five, 3, bias=True),
            _conv_norm(five, five, 3, bias=True),
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), _conv_norm(in_channels, pooled, 1, bias=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H, W]``."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class PooledNetwork(nn.Module):
    """Features, global average pooling and a linear layer.

    Args:
        features: Maps normalised images to ``[N, channels, H, W]``.
        channels: Channels of the features.
        num_classes: Outputs of the last layer.
    """

    def __init__(self, features: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]``, normalised, to logits ``[N, num_classes]``."""
        logits: Tensor = self.fc(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


class WeighedPreactBlock(PreactBlock):
    """A :class:`PreactBlock` with squeeze-and-excitation (Hu et al. 2018, Fig. 3)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.squeeze = nn.Conv2d(out_channels, max(1, out_channels // 16), 1)
        self.excite = nn.Conv2d(max(1, out_channels // 16), out_channels, 1)

    def branch(self, activated: Tensor) -> Tensor:
        """The convolved branch, ``[N, C_out, H / stride, W / stride]``, with weighed channels."""
        out = super().branch(activated)
        weights: Tensor = self.excite(self.squeeze(out.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return out * weights


class Aggregation(nn.Module):
    """Two residual blocks whose outputs a 1x1 convolution joins (Yu et al. 2018, Fig. 2).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first block.
        nested: Whether an aggregation precedes the blocks, whose output is joined as well, as is that of a
            residual block of the input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, nested: bool = False) -> None:
        super().__init__()
        self.join = _conv_norm((4 if nested else 2) * out_channels, out_channels, 1)
        self.inner: nn.Module | None = None
        self.root: nn.Module | None = None
        if nested:
            self.inner = Aggregation(in_channels, out_channels, stride)
            self.root = BasicBlock(in_channels, out_channels, stride)
            in_channels, stride = out_channels, 1
        self.left = BasicBlock(in_channels, out_channels, stride)
        self.right = BasicBlock(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        joined = []
        if self.inner is not None and self.root is not None:
            joined.append(self.root(x))
            x = self.inner(x)
            joined.append(x)
        left = self.left(x)
        out: Tensor = self.join(torch.cat([*joined, left, self.right(left)], 1))
        return out


class PairedAggregation(nn.Module):
    """Two aggregations whose outputs a 1x1 convolution joins, a simpler form than the paper's."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.join = _conv_norm(2 * out_channels, out_channels, 1)
        self.left = Aggregation(in_channels, out_channels, stride)
        self.right = Aggregation(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        left = self.left(x)
        out: Tensor = self.join(torch.cat([left, self.right(left)], 1))
        return out


class WeighedResNet(nn.Module):
    """ResNet-18 of :class:`WeighedPreactBlock`, with BatchNorm behind the stem and none behind the blocks."""

    def __init__(self, widths: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = _conv_norm(in_channels, widths[0])
        self.stages = add_stages(self, WeighedPreactBlock, (2, 2, 2, 2), widths[0], widths)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]``, normalised, to logits ``[N, num_classes]``."""
        x = self.stem(x)
        for name in self.stages:
            x = getattr(self, name)(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _densenet(
    depths: Sequence[int], num_classes: int, in_channels: int = 3, *, width: int, newest_first: bool = False
) -> nn.Module:
    return DenseNet(depths, width // 2, num_classes, in_channels, newest_first=newest_first)


_INCEPTIONS: tuple[tuple[int, ...], ...] = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
"""Widths of each inception (Szegedy et al. 2015, Table 1); () is a max-pool of stride 2."""


def _googlenet(num_classes: int, in_channels: int = 3, *, width: int) -> nn.Module:
    layers: list[nn.Module] = [_conv_norm(in_channels, width, bias=True)]
    channels = width
    for row in _INCEPTIONS:
        if not row:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
            continue
        widths = [one * width // 192 for one in row]
        layers.append(Inception(channels, widths))
        channels = widths[0] + widths[2] + widths[4] + widths[5]
    return PooledNetwork(nn.Sequential(*layers), channels, num_classes)


def _senet18(num_classes: int, in_channels: int = 3, *, width: int) -> nn.Module:
    return WeighedResNet(doubling(width), num_classes, in_channels)


def _dla(num_classes: int, in_channels: int = 3, *, width: int, simple: bool) -> nn.Module:
    def deep(inner: int, outer: int) -> nn.Module:
        return PairedAggregation(inner, outer, 2) if simple else Aggregation(inner, outer, 2, nested=True)

    layers = [
        _conv_norm(in_channels, width),
        _conv_norm(width, width),
        _conv_norm(width, 2 * width),
        Aggregation(2 * width, 4 * width, 1),
        deep(4 * width, 8 * width),
        deep(8 * width, 16 * width),
        Aggregation(16 * width, 32 * width, 2),
    ]
    return PooledNetwork(nn.Sequential(*layers), 32 * width, num_classes)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "densenet121_cifar": partial(_densenet, (6, 12, 24, 16), width=64, newest_first=True),
    "densenet121_cifar_appended": partial(_densenet, (6, 12, 24, 16), width=64),
    "densenet_bc100": partial(_densenet, (16, 16, 16), width=24),
    "googlenet_cifar": partial(_googlenet, width=192),
    "senet18_cifar": partial(_senet18, width=64),
    "dla34_cifar": partial(_dla, width=16, simple=False),
    "dla34_simple_cifar": partial(_dla, width=16, simple=True),
}
"""Builders by name, as in :mod:`bcu_cli.models.networks.cifar`.

The newest channels of ``densenet121_cifar`` stand first, in the others last, as in the paper. GoogLeNet has a
single 3x3 convolution as stem; ``dla34_simple_cifar`` consists of :class:`PairedAggregation`.
"""
