"""Hints: what enters a network's last layer, a row of numbers for each image, that its answer is made from.

It says more of an image than the answer does, so a student learns more from as many images (Romero et al.,
FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv:1412.6550; theirs are of a layer half-way).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.defenses.depth import measure
from bcu_cli.evaluation.features import entering

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTHING = 1e-12
"""Added to a mean square, for features that are all 0."""


def last_layer(network: nn.Module, example: Tensor) -> str:
    """The name of the layer that lies deepest; empty where what enters it cannot be seen.

    That is so in TorchScript, where it is no row (or map) for each image, and where it enters twice.

    Args:
        network: Any classifier, in eval mode.
        example: A batch that it takes, of two images or more.
    """
    if isinstance(network, torch.jit.ScriptModule):
        return ""
    name = max(measure(network, example), key=lambda layer: layer.depth).name
    with torch.no_grad(), hints(network, name) as seen:
        network(example)
    return name if len(seen) == 1 and len(seen[0]) == len(example) else ""


@contextmanager
def hints(network: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """What enters the layer of this name while the context lasts, call by call; nothing if it is empty."""
    if not name:
        yield []
        return
    with entering(network.get_submodule(name)) as seen:
        yield seen


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of features, float ``[N, …]``, as a share of the teacher's mean square."""
    ours, theirs = student.float(), teacher.float()
    return F.mse_loss(ours, theirs) / (theirs.square().mean() + NOTHING)
