"""Training steps on several ranks, by PyTorch's DistributedDataParallel.

Each rank computes the loss of its part of the batch. DistributedDataParallel averages the gradients. Here the
running statistics of BatchNorm are averaged as well, so that all ranks hold the same network after a step.
Each rank normalises its part of a batch by the statistics of that part.
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


class DistributedObjective:
    """An objective whose gradients are combined over all ranks.

    Args:
        objective: The loss of a part of a batch.
        learners: The trained modules; all ranks start with the weights of rank 0.
        unused: Whether a step may leave out some of their parameters.

    Raises:
        RankLostError: Another rank has ended.
    """

    def __init__(self, objective: Objective, learners: Sequence[nn.Module], *, unused: bool) -> None:
        with ranks.others_there(), warnings.catch_warnings():  # torch 2.10 lacks the new option
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._parallel = DistributedDataParallel(
                _Loss(objective, learners),
                broadcast_buffers=False,
                find_unused_parameters=unused,
                gradient_as_bucket_view=True,  # else gradients take twice the memory
            )
        self._statistics = Statistics(learners)

    def objective(self, images: Tensor, index: Tensor, progress: float) -> Tensor:
        """See ``loop.Objective``."""
        loss: Tensor = self._parallel(images, index, progress)
        return loss

    def without_exchange(self, yes: bool) -> AbstractContextManager[object]:
        """A context in which gradients are not exchanged, for all micro-batches but the last."""
        return self._parallel.no_sync() if yes else nullcontext()

    def combine(self, loss: Tensor, share: float) -> None:
        """Combine loss and statistics over all ranks, in place, after the last backward pass of a step.

        Args:
            loss: Contribution of this rank's images to the mean loss, a scalar.
            share: This rank's share of the images of the batch.

        Raises:
            RankLostError: Another rank has ended.
        """
        summed = ranks.summed(torch.cat([loss.view(1), self._statistics.now() * share]))
        loss.copy_(summed[0])
        self._statistics.set(summed[1:])

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Restore the statistics if the step inside the context fails.

        Raises:
            RankLostError: Another rank has ended.
        """
        try:
            with warnings.catch_warnings():  # for one channel two memory layouts are the same
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
                yield
        except Exception as error:
            self._statistics.undo()
            if ranks.is_lost(error):
                raise RankLostError(*ranks.LOST) from error
            raise


class Statistics:
    """The running statistics of all BatchNorms of some modules.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        inner: list[Any] = [each for module in modules for each in module.modules()]
        norms = [each for each in inner if getattr(each, "running_mean", None) is not None]
        self._device = next(modules[0].parameters()).device
        self._buffers: list[Tensor] = [
            kept
            for norm in norms
            for kept in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
            if kept is not None
        ]
        self._kept = self.now()

    def now(self) -> Tensor:
        """All statistics in one row, float32."""
        nothing = torch.zeros(0, device=self._device)
        return torch.cat([nothing, *(each.flatten().float() for each in self._buffers)])

    def set(self, values: Tensor) -> None:
        """Replace all statistics."""
        self._kept = values
        self.undo()

    def undo(self) -> None:
        """Restore the statistics at the start, or those last set."""
        sizes = [each.numel() for each in self._buffers]
        with torch.no_grad():
            for each, value in zip(self._buffers, torch.split(self._kept, sizes), strict=True):
                whole = value if each.is_floating_point() else value.round()
                each.copy_(whole.view_as(each))


class _Loss(nn.Module):
    """The objective as a module that contains the trained modules."""

    def __init__(self, objective: Objective, learners: Sequence[nn.Module]) -> None:
        super().__init__()
        self.learners = nn.ModuleList(learners)
        self.objective: Any = objective

    def forward(self, images: Tensor, index: Tensor, progress: float) -> Tensor:
        """See ``loop.Objective``."""
        loss: Tensor = self.objective(images, index, progress)
        return loss
