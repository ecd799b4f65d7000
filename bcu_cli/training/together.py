"""A step of a training on several ranks: PyTorch's DistributedDataParallel, and what it leaves to do.

Each rank computes the loss of its part of the batch. DistributedDataParallel adds up the gradients while
they are computed. Here the BatchNorm statistics that were kept are averaged, too, so that all ranks hold the
same network after a step; a batch is normalised by the statistics of a rank's own part of it.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bcu_cli.errors import RankLostError
from bcu_cli.training import ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bcu_cli.training.loop import Objective


class Together:
    """The objective of a training whose gradients are those of all ranks.

    Args:
        objective: The loss of a part of a batch.
        learners: The modules that learn by it; those of rank 0 are given to all.
        unused: Whether it may leave out some of their parameters, now or in a later step.

    Raises:
        RankLostError: Another rank has ended.
    """

    def __init__(self, objective: Objective, learners: Sequence[nn.Module], *, unused: bool) -> None:
        with ranks.others_there(), warnings.catch_warnings():  # its new name is not known to torch 2.10
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._parallel = DistributedDataParallel(
                _Loss(objective, learners),
                broadcast_buffers=False,
                find_unused_parameters=unused,
                gradient_as_bucket_view=True,  # else it holds them twice
            )
        self._statistics = Statistics(learners)

    def objective(self, images: Tensor, index: Tensor, progress: float) -> Tensor:
        """As ``loop.Objective``."""
        loss: Tensor = self._parallel(images, index, progress)
        return loss

    def alone(self, yes: bool) -> AbstractContextManager[object]:
        """A context in which gradients stay with this rank: those of all parts of a batch but the last."""
        return self._parallel.no_sync() if yes else nullcontext()

    def agree(self, loss: Tensor, share: float) -> None:
        """Make the loss and the statistics those of the whole batch, in place, after a step's last backward.

        Args:
            loss: The part of this rank's images in the mean over the batch, a scalar.
            share: Of the batch's images that are this rank's.

        Raises:
            RankLostError: Another rank has ended.
        """
        summed = ranks.summed(torch.cat([loss.view(1), self._statistics.now() * share]))
        loss.copy_(summed[0])
        self._statistics.set(summed[1:])

    @contextmanager
    def whole_step(self) -> Iterator[None]:
        """A step in here is done as a whole or not at all.

        Raises:
            RankLostError: Another rank has ended.
        """
        try:
            with (
                warnings.catch_warnings()
            ):  # torch lays out gradients of one channel in two ways that are one
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
                yield
        except Exception as error:
            self._statistics.undo()
            if ranks.is_lost(error):
                raise RankLostError(*ranks.LOST) from error
            raise


class Statistics:
    """What the BatchNorms of modules keep of the batches that they have seen.

    Args:
        modules: Whose.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        inner: list[Any] = [each for module in modules for each in module.modules()]
        norms = [each for each in inner if getattr(each, "running_mean", None) is not None]
        self._device = next(modules[0].parameters()).device
        self._own: list[Tensor] = [
            kept
            for norm in norms
            for kept in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
            if kept is not None
        ]
        self._kept = self.now()

    def now(self) -> Tensor:
        """All of it in a row, float32."""
        nothing = torch.zeros(0, device=self._device)
        return torch.cat([nothing, *(each.flatten().float() for each in self._own)])

    def set(self, values: Tensor) -> None:
        """Replace all of it."""
        self._kept = values
        self.undo()

    def undo(self) -> None:
        """Bring it back to what it was at the start, or was last replaced by."""
        sizes = [each.numel() for each in self._own]
        with torch.no_grad():
            for each, value in zip(self._own, torch.split(self._kept, sizes), strict=True):
                whole = value if each.is_floating_point() else value.round()
                each.copy_(whole.view_as(each))


class _Loss(nn.Module):
    """The objective as a module whose parts learn by it."""

    def __init__(self, objective: Objective, learners: Sequence[nn.Module]) -> None:
        super().__init__()
        self.learners = nn.ModuleList(learners)
        self.objective: Any = objective

    def forward(self, images: Tensor, index: Tensor, progress: float) -> Tensor:
        """See ``loop.Objective``."""
        loss: Tensor = self.objective(images, index, progress)
        return loss
