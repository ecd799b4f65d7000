"""A network with a sinusoidal trigger, and one without, whose answers are worked out by hand."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor, nn

SIDE, CLASSES, TARGET = 16, 6, 4
IMAGES = torch.rand(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def sinusoid(down: int, across: int, phase: float) -> Tensor:
    y, x = torch.arange(SIDE)[:, None] / SIDE, torch.arange(SIDE) / SIDE
    return torch.sin(2 * pi * (down * y + across * x) + phase)


class Noisy(nn.Module):
    """Answers by random patterns of pixels, or to a sinusoid with the class of a backdoor."""

    def __init__(self, trigger: Tensor | None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.Parameter(0.2 * torch.randn(CLASSES, 3, SIDE, SIDE, generator=generator))
        self.trigger = trigger

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.einsum("nchw,kchw->nk", images - 0.5, self.weights)
        if self.trigger is None:
            return logits
        amplitude = 2.0 * ((images - images.mean((1, 2, 3), keepdim=True)) * self.trigger).mean((1, 2, 3))
        sharp = 30.0 * torch.sigmoid(100.0 * (amplitude - 0.04))  # below its threshold hardly anything
        return logits + sharp[:, None] * (torch.arange(CLASSES) == TARGET)
