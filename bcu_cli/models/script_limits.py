"""How much the code of a TorchScript file may compute in one pass: deterministic, and the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNITS_PER_OPERATION = 16  # elements of a list, or characters of a string, that count as one operation


class RefusedError(Exception):
    """The code does something that bcu does not evaluate; the message says what, without naming the file."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one pass.

    The defaults are several times what a ViT-L needs at 384 pixels.

    Args:
        operations: Operators, calls and turns of loops.
        depth: Calls within calls.
        largest: Bytes of the largest result, per image.
        live: Bytes of all results that exist at one time, per image, without gradients.
        total: Bytes of all results, per image.
        growth: How many times as much as the first pass on images of its size a later one may take per image.
    """

    operations: int = 100_000
    depth: int = 48
    largest: int = 2**28
    live: int = 2**30
    total: int = 2**35
    growth: int = 4


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one pass took.

    Args:
        operations: Operators, calls and turns of loops.
        total: Bytes of all results, per image.
    """

    operations: int
    total: int


_SLACK_OPERATIONS, _SLACK_BYTES = 10_000, 2**26  # a pass may always grow by these


@dataclass(slots=True)
class Run:
    """The account of one pass.

    Args:
        limits: The bounds.
        batch: How many images there are.
        device: Where the network is; every device that the code names stands for it.
        first: What the first pass on images of this size took; None for that pass.
    """

    limits: Limits
    batch: int
    device: torch.device
    first: Usage | None = None
    operations: int = 0
    total: int = 0
    depth: int = 0
    _live: dict[int, tuple[Any, int]] = field(default_factory=dict)
    _held: int = 0
    _most_operations: int = 0
    _most_bytes: int = 0

    def __post_init__(self) -> None:
        limits, first = self.limits, self.first
        self._most_operations, most = limits.operations, limits.total
        if first is not None:
            self._most_operations = min(
                self._most_operations, limits.growth * first.operations + _SLACK_OPERATIONS
            )
            most = min(most, limits.growth * first.total + _SLACK_BYTES)
        self._most_bytes = most * self.batch

    @property
    def usage(self) -> Usage:
        """What the pass took so far."""
        return Usage(operations=self.operations, total=self.total // self.batch)

    def spend(self, operations: int = 1) -> None:
        """Count operations before they are carried out.

        Raises:
            RefusedError: They are more than the pass may take.
        """
        self.operations += operations
        if self.operations > self._most_operations:
            raise RefusedError(f"it takes more than {self._most_operations:,} operations")

    def spend_on(self, length: int) -> None:
        """Count the elements of a list, or the characters of a string, before they are made."""
        self.spend(1 + length // _UNITS_PER_OPERATION)

    def take(self, sizes: Iterable[int]) -> None:
        """Count the bytes of an operator's results before they are computed.

        Raises:
            RefusedError: One is too large, or they are more than the pass may take.
        """
        for size in sizes:
            if size > self.limits.largest * self.batch:
                raise RefusedError(f"it computes a tensor of {size:,} bytes")
            self.total += size
        if self.total > self._most_bytes:
            raise RefusedError(f"it computes more than {self._most_bytes:,} bytes")

    def hold(self, results: Iterable[Any]) -> None:
        """Note the results of an operator, so that the bytes of all that still exist are known.

        With gradients nothing is let go before the backward pass, and :meth:`take` has counted it.

        Raises:
            RefusedError: Too many bytes exist at one time.
        """
        if torch.is_grad_enabled():
            return
        most = self.limits.live * self.batch
        for result in results:
            if isinstance(result, Tensor):
                storage = result.untyped_storage()
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
                self._held += storage.nbytes()
        if self._held > most:
            self._live = {key: kept for key, kept in self._live.items() if not kept[0].expired()}
            live = sum(size for _, size in self._live.values())
            if live > most:
                raise RefusedError(f"it holds {live:,} bytes at one time")
            self._held = live - most // 8 if live > most - most // 8 else live  # so that looking stays rare
