"""Channel Lipschitz pruning: channels with an unusually high Lipschitz bound are cut; needs no images.

Zheng, Tang, Li, Liu, Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022, arXiv:2208.03111,
Algorithm 1. In each convolution the channels whose bound lies above the mean of the layer by more than ``u``
standard deviations are set to 0; u = 3.

Deviations: a convolution whose output goes to no BatchNorm is judged by its kernel alone, and so is one in
front of a GroupNorm. The former ends a pre-activation block, or is in a network without norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from bcu_cli.defenses.base import Defense, DefenseOptions, require
from bcu_cli.models.channels import Channels, find_channels, lipschitz_bounds, pruned_report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from bcu_cli.training.loop import Stage


@dataclass(frozen=True, kw_only=True)
class ClpOptions(DefenseOptions):
    """Options of method ``clp``; the default is the paper's.

    Args:
        u: Threshold in standard deviations above the mean bound of the layer; channels above it are cut.
    """

    u: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.u > 0, f"a threshold of {self.u:g} deviations makes no sense", "--setting u=3")


class ChannelLipschitzPruning(Defense[ClpOptions]):
    """The method of Zheng et al. 2022."""

    name = "clp"
    paper = "Zheng et al., Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022"
    Options: ClassVar[type[DefenseOptions]] = ClpOptions
    needs_images = False
    needs_labels = False

    pruned: list[tuple[Channels, Tensor]]

    def stages(self) -> Iterator[Stage]:
        """Cut the channels; there is no training."""
        network = self.student.network
        example = torch.zeros(1, *self.teacher.preprocessing.input_size)
        self.pruned = []
        for channels in find_channels(network, example):
            index = outliers(lipschitz_bounds(channels.convolution, channels.norm), self.options.u)
            channels.zero_out(index)
            self.pruned.append((channels, index))
        yield from ()

    def details(self) -> dict[str, Any]:
        """The channels that were cut."""
        return {"pruned": pruned_report(self.pruned)}


def outliers(bounds: Tensor, u: float) -> Tensor:
    """The index, int64 ``[M]``, of the bounds ``[C]`` above their mean by more than ``u`` deviations."""
    deviation = bounds.std(correction=0)
    return (bounds > bounds.mean() + u * deviation).nonzero()[:, 0]
