"""Processes that train one network together: which of them this one is, and what they say to each other.

A process is called a rank, as everywhere in the field; torchrun starts them and numbers them from 0. Where
nobody has joined a group there is one rank, and nothing here costs anything.
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
"""How long a rank waits for the others before it gives up; nothing that one does alone takes as long."""
_FAILED = "bcu/failed"
LOST = (
    "another process of the run has ended",
    "look at what it said; the same command with --resume continues from the state kept last",
)
"""Message and hint."""


def count() -> int:
    """How many ranks train together, on all machines."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """The number of this one, from 0; that one writes and talks."""
    return dist.get_rank() if _joined() else 0


def local_rank() -> int:
    """Its number among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _joined() else 0


def local_count() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _joined() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the ranks that torchrun has started: what is on the CPU goes by gloo, on CUDA by nccl."""
    with others_there():
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    yield
    gc.collect()  # what still holds the group would outlive Python, whose threads then abort the process
    dist.destroy_process_group()  # not after an error: it would wait for ranks that have ended


def part(size: int) -> slice:
    """This rank's part of so many things in a row; the parts are equal within one, and together all."""
    return slice(rank() * size // count(), (rank() + 1) * size // count())


def same(value: T) -> T:
    """What rank 0 has, a plain value that pickle knows, on all ranks.

    Raises:
        RankLostError: Another rank has ended.
    """
    if count() == 1:
        return value
    values = [value]
    with others_there():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(own: Tensor) -> Tensor:
    """What all ranks have, ``[n, …]`` each, one after another: ``[N, …]``, on the CPU.

    Raises:
        RankLostError: Another rank has ended.
    """
    if count() == 1:
        return own
    parts: list[Any] = [None] * count()
    with others_there():
        dist.all_gather_object(parts, own)
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
    """Refuse to train together with ranks that see something else, as another machine may.

    Raises:
        UsageError: Rank 0 has another value.
    """
    if value != same(value):
        raise UsageError(
            f"process {rank()} has {what} other than those of process 0",
            "every machine needs the same files, and the same options",
        )


class Anyone:
    """Whether any rank says yes; all hear of it at the same call, which is the one after."""

    def __init__(self) -> None:
        self._said = torch.zeros(())
        self._work: Any = None

    def says(self, yes: bool) -> bool:
        """Say so or not; returns what was said at the last call, by any rank.

        One rank alone hears itself at once.

        Raises:
            RankLostError: Another rank has ended.
        """
        if count() == 1:
            return yes
        with others_there():
            if self._work:
                self._work.wait()
            heard = bool(self._said)
            self._said = torch.tensor(float(yes))
            self._work = dist.all_reduce(self._said, dist.ReduceOp.MAX, async_op=True)
        return heard


def first_to_fail() -> bool:
    """Whether no other rank has failed before this one: it is to say why, and the others are silent."""
    if count() == 1:
        return True
    try:
        return dist.distributed_c10d._get_default_store().add(_FAILED, 1) == 1
    except (RuntimeError, ValueError):  # the machine that keeps the count is gone, or was left in good order
        return rank() == 0


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another rank has ended, or does not answer."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


@contextmanager
def others_there() -> Iterator[None]:
    """Name the error that is theirs.

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
