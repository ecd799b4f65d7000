"""Processes (ranks) that train one network together, and their communication.

torchrun starts the ranks and numbers them from 0. Without a process group there is one rank, and these
functions cost nothing.
"""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from bcu_cli.errors import RankLostError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)
"""Time that a rank waits for the others before it gives up; no step of a single rank takes as long."""
_FAILED = "bcu/failed"
LOST = (
    "another process of the run has ended",
    "see its messages; repeat the command with --resume to continue from the last saved state",
)
"""Message and hint."""


def count() -> int:
    """Number of ranks on all machines."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Number of this rank, from 0; rank 0 writes files and prints."""
    return dist.get_rank() if _joined() else 0


def local_rank() -> int:
    """Number of this rank on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _joined() else 0


def local_count() -> int:
    """Number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _joined() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group that torchrun started; gloo is used on the CPU, nccl on CUDA."""
    with others_there():
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    yield
    gc.collect()  # references to the group at exit would make its threads abort the process
    dist.destroy_process_group()  # not after an error, when it would wait for ended ranks


def part(size: int) -> slice:
    """This rank's part of ``size`` items; the sizes of the parts differ by at most one."""
    return slice(rank() * size // count(), (rank() + 1) * size // count())


def same(value: T) -> T:
    """Broadcast a plain value that pickle supports from rank 0.

    Raises:
        RankLostError: Another rank has ended.
    """
    if count() == 1:
        return value
    values = [value]
    with others_there():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(part_of_rank: Tensor) -> Tensor:
    """The parts ``[n, …]`` of all ranks, concatenated to ``[N, …]``, on the CPU.

    Raises:
        RankLostError: Another rank has ended.
    """
    if count() == 1:
        return part_of_rank
    parts: list[Any] = [None] * count()
    with others_there():
        dist.all_gather_object(parts, part_of_rank)
    return torch.cat(parts)


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks of a tensor on any device, in place.

    Raises:
        RankLostError: Another rank has ended.
    """
    if count() > 1:
        with others_there():
            dist.all_reduce(values)
    return values


def require_same(value: str, what: str) -> None:
    """Refuse to train with ranks that have another value, as ranks on another machine may.

    Raises:
        UsageError: Rank 0 has another value.
    """
    if value != same(value):
        raise UsageError(
            f"process {rank()} has {what} other than those of process 0",
            "every machine needs the same files, and the same options",
        )


class Anyone:
    """Whether any rank says yes; all ranks learn it at the same call, which is the next one."""

    def __init__(self) -> None:
        self._vote = torch.zeros(())
        self._work: Any = None

    def says(self, yes: bool) -> bool:
        """Say yes or no; returns whether any rank said yes at the previous call.

        A single rank gets its answer at once.

        Raises:
            RankLostError: Another rank has ended.
        """
        if count() == 1:
            return yes
        with others_there():
            if self._work:
                self._work.wait()
            result = bool(self._vote)
            self._vote = torch.tensor(float(yes))
            self._work = dist.all_reduce(self._vote, dist.ReduceOp.MAX, async_op=True)
        return result


def first_to_fail() -> bool:
    """Whether this rank is the first to fail; it prints the error, and the others are silent."""
    if count() == 1:
        return True
    try:
        return dist.distributed_c10d._get_default_store().add(_FAILED, 1) == 1
    except (RuntimeError, ValueError):  # the machine that keeps the count has ended
        return rank() == 0


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another rank has ended, or does not answer."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


@contextmanager
def others_there() -> Iterator[None]:
    """Turn errors of the communication into one that names their cause.

    Raises:
        RankLostError: Another rank has ended, or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if is_lost(error):
            raise RankLostError(*LOST) from error
        raise


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
