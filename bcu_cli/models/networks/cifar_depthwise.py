"""Built-in networks with depthwise convolutions, for images of about 32x32 pixels.

They keep the resolution in the stem, and in MobileNetV2 also in the second stage. Weights are initialised as
in :mod:`bcu_cli.models.networks.cifar`.

Papers: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"; Ma et al. 2018,
"ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design"; Tan & Le 2019, "EfficientNet:
Rethinking Model Scaling for Convolutional Neural Networks".
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bcu_cli.models.networks.cifar import initialise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _conv_norm(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, *, depthwise: bool = False
) -> nn.Sequential:
    """A convolution without bias, and BatchNorm."""
    groups = in_channels if depthwise else 1
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a 3x3 depthwise and a linear 1x1 convolution (Sandler et al. 2018, Fig. 4).

    Deviations of the usual network for CIFAR: ReLU in place of ReLU6, and a 1x1 convolution as shortcut where
    only the width changes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand = _conv_norm(in_channels, width)
        self.depthwise = _conv_norm(width, width, 3, stride, depthwise=True)
        self.project = _conv_norm(width, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.has_shortcut = stride == 1
        changes = self.has_shortcut and in_channels != out_channels
        self.shortcut = _conv_norm(in_channels, out_channels) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        out: Tensor = self.project(self.relu(self.depthwise(self.relu(self.expand(x)))))
        return out + self.shortcut(x) if self.has_shortcut else out


class SqueezedResidual(nn.Module):
    """An inverted residual with squeeze-and-excitation and SiLU (Tan & Le 2019, section 4).

    Without expansion the 1x1 convolution exists, as in the usual network for CIFAR, but it is not used.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width, squeezed = in_channels * expansion, max(1, in_channels // 4)
        self.expands = expansion != 1
        self.expand = _conv_norm(in_channels, width)
        self.depthwise = _conv_norm(width, width, kernel, stride, depthwise=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, width, 1)
        self.project = _conv_norm(width, out_channels)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        silu = nn.functional.silu
        out = silu(self.expand(x)) if self.expands else x
        out = silu(self.depthwise(out))
        out = out * self.excite(silu(self.squeeze(self.pool(out)))).sigmoid()
        result: Tensor = self.project(out)
        return result + x if self.has_shortcut else result


def _shuffled(x: Tensor) -> Tensor:
    """The channels of two halves by turns."""
    return nn.functional.channel_shuffle(x, 2)


class SplitBlock(nn.Module):
    """Half of the channels pass, half are convolved, then all are shuffled (Ma et al. 2018, Fig. 3c)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels // 2
        self.before = _conv_norm(self.width, self.width)
        self.depthwise = _conv_norm(self.width, self.width, 3, depthwise=True)
        self.after = _conv_norm(self.width, self.width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        out = self.depthwise(self.relu(self.before(x[:, self.width :])))
        return _shuffled(torch.cat([x[:, : self.width], self.relu(self.after(out))], 1))


class SplitDownBlock(nn.Module):
    """Two branches of stride 2, joined and shuffled (Ma et al. 2018, Fig. 3d)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.left_depthwise = _conv_norm(in_channels, in_channels, 3, 2, depthwise=True)
        self.left = _conv_norm(in_channels, half)
        self.before = _conv_norm(in_channels, half)
        self.depthwise = _conv_norm(half, half, 3, 2, depthwise=True)
        self.after = _conv_norm(half, half)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / 2, W / 2]``."""
        left = self.relu(self.left(self.left_depthwise(x)))
        right = self.relu(self.after(self.depthwise(self.relu(self.before(x)))))
        return _shuffled(torch.cat([left, right], 1))


class DepthwiseNetwork(nn.Module):
    """A stem, blocks, an optional last convolution, global average pooling and a linear layer.

    Args:
        stem: The first convolution, with BatchNorm.
        blocks: The blocks.
        last: The last convolution, with BatchNorm; empty for none.
        features: Channels before the linear layer.
        num_classes: Outputs of the last layer.
        activation: Follows the stem and the last convolution.
        dropout: Share of the features that are dropped in training.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        last: nn.Module,
        features: int,
        num_classes: int,
        *,
        activation: type[nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(stem, activation())
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(last, activation()) if len(list(last.parameters())) else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]``, normalised, to logits ``[N, num_classes]``."""
        x = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return logits


_INVERTED_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and stride (Sandler et al. 2018, Table 2; the second stage keeps its size)."""
_SQUEEZED_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Expansion, channels, blocks, stride and kernel (Tan & Le 2019, Table 1, for 32x32)."""


def _mobilenetv2(num_classes: int, in_channels: int = 3, *, width: int) -> nn.Module:
    blocks: list[nn.Module] = []
    channels = width
    for expansion, full, depth, stride in _INVERTED_STAGES:
        for i in range(depth):
            out_channels = full * width // 32
            blocks.append(InvertedResidual(channels, out_channels, stride if i == 0 else 1, expansion))
            channels = out_channels
    features = 1280 * width // 32
    last = _conv_norm(channels, features)
    return DepthwiseNetwork(_conv_norm(in_channels, width, 3), blocks, last, features, num_classes)


def _efficientnet_b0(num_classes: int, in_channels: int = 3, *, width: int) -> nn.Module:
    blocks: list[nn.Module] = []
    channels = width
    for expansion, full, depth, stride, kernel in _SQUEEZED_STAGES:
        for i in range(depth):
            out_channels = full * width // 32
            first_stride = stride if i == 0 else 1
            blocks.append(SqueezedResidual(channels, out_channels, kernel, first_stride, expansion))
            channels = out_channels
    stem = _conv_norm(in_channels, width, 3)
    return DepthwiseNetwork(
        stem, blocks, nn.Identity(), channels, num_classes, activation=nn.SiLU, dropout=0.2
    )


def _shufflenet(widths: Sequence[int], features: int, num_classes: int, in_channels: int = 3) -> nn.Module:
    blocks: list[nn.Module] = []
    channels = 24
    for width, depth in zip(widths, (3, 7, 3), strict=True):
        blocks += [SplitDownBlock(channels, width), *(SplitBlock(width) for _ in range(depth))]
        channels = width
    last = _conv_norm(channels, features)
    return DepthwiseNetwork(_conv_norm(in_channels, 24, 3), blocks, last, features, num_classes)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mobilenetv2_cifar": partial(_mobilenetv2, width=32),
    "efficientnet_b0_cifar": partial(_efficientnet_b0, width=32),
    "shufflenetv2_x0_5_cifar": partial(_shufflenet, (48, 96, 192), 1024),
    "shufflenetv2_x1_cifar": partial(_shufflenet, (116, 232, 464), 1024),
    "shufflenetv2_x1_5_cifar": partial(_shufflenet, (176, 352, 704), 1024),
    "shufflenetv2_x2_cifar": partial(_shufflenet, (224, 488, 976), 2048),
}
"""Builders by name, as in :mod:`bcu_cli.models.networks.cifar`; EfficientNet has no last convolution."""
