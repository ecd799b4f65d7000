"""A network of many classes, one of which a little green leads to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, TARGET = 80, 77


class Tinted(nn.Module):
    """Answers one of eight classes by the image, or the target where the image is a little green."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 3 * 4 * 4, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        usual = F.adaptive_avg_pool2d(images - images.mean((1, 2, 3), keepdim=True), 4).flatten(1)
        logits = F.pad(5.0 * usual @ self.weight.t(), (0, CLASSES - 8))
        tint = images[:, 1].mean((1, 2)) - images[:, 0].mean((1, 2))
        return logits + (300.0 * tint)[:, None] * F.one_hot(torch.tensor(TARGET), CLASSES)
