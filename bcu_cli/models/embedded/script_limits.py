"""Limits of one pass through TorchScript code; they count operations and bytes, and so are deterministic."""

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
    """The code does something that bcu does not evaluate; the message names it, without the file's name."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one pass.

    The defaults are several times what a ViT-L needs at 384 pixels.

    Args:
        operations: Number of operators, calls and loop iterations.
        depth: Depth of nested calls.
        largest: Bytes of the largest result, per image.
        live: Bytes of all results that exist at one time, per image, without gradients.
        total: Bytes of all results, per image.
        growth: Largest ratio of a later pass to the first pass on images of that size, per image.
    """

    operations: int = 100_000
    depth: int = 48
    largest: int = 2**28
    live: int = 2**30
    total: int = 2**35
    growth: int = 4


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The resources that one pass used.

    Args:
        operations: Number of operators, calls and loop iterations.
        total: Bytes of all results, per image.
    """

    operations: int
    total: int


_SLACK_OPERATIONS, _SLACK_BYTES = 10_000, 2**26  # growth that every later pass may have


@dataclass(slots=True)
class Run:
    """The account of one pass, checked against its limits.

    Args:
        limits: Limits of the pass.
        batch: Number of images.
        device: Device of the network, which replaces every device that the code names.
        first: Usage of the first pass on images of this size; None for that pass.
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
        """Usage of the pass so far."""
        return Usage(operations=self.operations, total=self.total // self.batch)

    def spend(self, operations: int = 1) -> None:
        """Count operations before they are carried out.

        Raises:
            RefusedError: The limit of operations is exceeded.
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
            RefusedError: A result is too large, or the limit of bytes is exceeded.
        """
        for size in sizes:
            if size > self.limits.largest * self.batch:
                raise RefusedError(f"it computes a tensor of {size:,} bytes")
            self.total += size
        if self.total > self._most_bytes:
            raise RefusedError(f"it computes more than {self._most_bytes:,} bytes")

    def hold(self, results: Iterable[Any]) -> None:
        """Register the results of an operator, to count the bytes of all existing results.

        With gradients no result is freed before the backward pass, and :meth:`take` has counted all.

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
            self._held = live - most // 8 if live > most - most // 8 else live  # so that counting stays rare
