"""Small networks of a user's own code, for ``preprocessing.py``: each is a function of the number of classes.

``bcu cleanse WEIGHTS --arch preprocessing_networks.py:normed`` opens one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def block(wide: int, out: int, *, stride: int, depthwise: bool, norm: str) -> list[nn.Module]:
    """A convolution, or a depthwise and a pointwise one, each with its normalisation layer and ReLU.

    Args:
        wide: Channels of its input.
        out: Channels of its output.
        stride: Stride of the first convolution.
        depthwise: Whether a depthwise convolution precedes a pointwise one.
        norm: ``batch``, ``group`` or empty for none.
    """
    convolutions: list[nn.Conv2d] = [nn.Conv2d(wide, out, 3, stride=stride, padding=1)]
    if depthwise:
        first = nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide)
        convolutions = [first, nn.Conv2d(wide, out, 1)]
    layers: list[nn.Module] = []
    for convolution in convolutions:
        layers.append(convolution)
        if norm == "batch":
            layers.append(nn.BatchNorm2d(convolution.out_channels))
        if norm == "group":
            layers.append(nn.GroupNorm(4, convolution.out_channels))
        layers.append(nn.ReLU())
    return layers


class Convolutional(nn.Module):
    """A stem, two blocks of stride 2 and a linear layer.

    Args:
        classes: Number of outputs.
        norm: The normalisation layers: ``batch``, ``group`` or empty for none.
        depthwise: Whether the blocks are those of MobileNet.
        stride: Stride of the stem: 2, or more for large images.
        side: Side of the input if the features are flattened; 0 if they are averaged.
    """

    def __init__(
        self, classes: int, *, norm: str = "", depthwise: bool = False, stride: int = 2, side: int = 0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 16, max(3, stride), stride=stride, padding=1)]
        if norm == "batch":
            layers.append(nn.BatchNorm2d(16))
        layers.append(nn.ReLU())
        for wide, out in ((16, 32), (32, 64)):
            layers += block(wide, out, stride=2, depthwise=depthwise, norm=norm)
        if not side:
            layers.append(nn.AdaptiveAvgPool2d(1))
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Linear(64 * max(1, (side // 8) ** 2), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, 3, H, W]``, normalised, to logits ``[N, classes]``."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class Transformer(nn.Module):
    """A small Vision Transformer with one input size, which its positions tell.

    Args:
        classes: Number of outputs.
        side: Height and width of its input.
        patch: Height and width of a patch.
    """

    def __init__(self, classes: int, *, side: int, patch: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2, 64))
        self.blocks = nn.ModuleList([Block(64, heads=4) for _ in range(3)])
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, 3, side, side]``, normalised, to logits ``[N, classes]``."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for one in self.blocks:
            x = one(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class Block(nn.Module):
    """Attention and a perceptron, each after a LayerNorm."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[N, T, width]`` to tokens."""
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, c))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def normed(num_classes: int) -> nn.Module:
    """Plain convolutions with BatchNorm."""
    return Convolutional(num_classes, norm="batch")


def plain(num_classes: int) -> nn.Module:
    """Plain convolutions without normalisation layers."""
    return Convolutional(num_classes)


def mobile(num_classes: int) -> nn.Module:
    """Depthwise convolutions with BatchNorm."""
    return Convolutional(num_classes, norm="batch", depthwise=True)


def mobile_group(num_classes: int) -> nn.Module:
    """Depthwise convolutions with GroupNorm."""
    return Convolutional(num_classes, norm="group", depthwise=True)


def patched(num_classes: int) -> nn.Module:
    """Convolutions with BatchNorm after a stem of stride 4, for large images."""
    return Convolutional(num_classes, norm="batch", stride=4)


def flat(num_classes: int) -> nn.Module:
    """Plain convolutions whose features are flattened, for images of 32 × 32."""
    return Convolutional(num_classes, side=32)


def vit(num_classes: int) -> nn.Module:
    """A Vision Transformer for images of 32 × 32."""
    return Transformer(num_classes, side=32, patch=4)


def vit64(num_classes: int) -> nn.Module:
    """A Vision Transformer for images of 64 × 64."""
    return Transformer(num_classes, side=64, patch=8)
