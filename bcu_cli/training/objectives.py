"""Objectives that several attacks and defenses share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bcu_cli.training.loop import Objective


def cross_entropy(model: nn.Module, labels: Tensor) -> Objective:
    """The objective of an ordinary training; ``labels`` is int64 ``[N]`` on the device."""

    def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - same at all times
        return F.cross_entropy(model(images).float(), labels[index])

    return objective
