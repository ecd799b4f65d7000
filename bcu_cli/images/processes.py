"""Decoding in several processes, which end with their parent and leave Ctrl-C to it.

Imports no torch, as ``decoding.py``: the processes start with this module.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding import UNREADABLE, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from bcu_cli.images.decoding import Geometry, Picture

FILES_PER_TASK = 64
FILES_WORTH_PROCESSES = 1024
"""Below this, starting processes takes longer than decoding; measured with 32x32 JPEGs on two cores."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What became of some pictures.

    Args:
        images: uint8 ``[N, C, H, W]``; of those that are no picture anything.
        faults: Position -> why it is no picture that can be read.
        seconds: That decoding took.
    """

    images: NDArray[np.uint8]
    faults: dict[int, str]
    seconds: float


def cores() -> int:
    """How many this process may use; those of a machine are divided among the processes of torchrun."""
    return max(1, _of_machine() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _of_machine() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Decoders:
    """Processes that decode; they are started as they are needed.

    Args:
        geometry: What each picture becomes.
        processes: At most so many.
    """

    def __init__(self, geometry: Geometry, processes: int) -> None:
        self._geometry = geometry
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin)

    def submit(self, pictures: Sequence[Picture]) -> Future[Decoded]:
        """Have some decoded; ``finished`` has the result."""
        with _broken_is_an_error(), _deaf_to_interrupts():
            return self._pool.submit(decode_some, pictures, self._geometry)

    def finished(self, future: Future[Decoded]) -> Decoded:
        """Wait for what was submitted.

        Raises:
            ImagesError: A decoding process died (out of memory, or a fault in a decoder).
        """
        with _broken_is_an_error():
            return future.result()

    def close(self) -> None:
        """End the processes, once each is done with what it has in hand."""
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _broken_is_an_error() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise ImagesError(
            "a process that decoded the images died", "look for a huge or damaged file, or free some memory"
        ) from error


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started meanwhile never hear of what a terminal sends, not even as they start.

    Their parent hears of it and ends them, once it has ended the step that needs them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """In each process: end when the parent is gone, however it went."""
    Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    if parent := parent_process():
        parent.join()
    os._exit(1)


def decode_some(pictures: Sequence[Picture], geometry: Geometry) -> Decoded:
    """Decode pictures in this process."""
    started = time.perf_counter()
    images = np.empty((len(pictures), geometry.channels, geometry.height, geometry.width), dtype=np.uint8)
    faults = {}
    for position, picture in enumerate(pictures):
        try:
            images[position] = decode(picture, geometry)
        except UNREADABLE as error:
            faults[position] = f"{type(error).__name__}: {error}"
    return Decoded(images=images, faults=faults, seconds=time.perf_counter() - started)


def decode_many(
    pictures: Sequence[Picture], geometry: Geometry, *, on_progress: Callable[[int], None] | None = None
) -> tuple[NDArray[np.uint8], list[int], list[tuple[int, str]]]:
    """Decode pictures in several processes, in their order.

    Args:
        pictures: Files or arrays.
        geometry: What each becomes.
        on_progress: Called with the number of pictures decoded since the last call.

    Returns:
        The pictures, uint8 ``[N, C, H, W]``; the index into ``pictures`` of each; and the indices of those
        that are no readable picture, with the reason.

    Raises:
        ImagesError: A decoding process died (out of memory, or a fault in a decoder).
    """
    images = np.empty((len(pictures), geometry.channels, geometry.height, geometry.width), dtype=np.uint8)
    kept: list[int] = []
    skipped: list[tuple[int, str]] = []
    start = 0
    for decoded in _in_order(pictures, geometry):
        good = [i for i in range(len(decoded.images)) if i not in decoded.faults]
        images[len(kept) : len(kept) + len(good)] = decoded.images[good]
        kept += [start + i for i in good]
        skipped += [(start + i, reason) for i, reason in decoded.faults.items()]
        start += len(decoded.images)
        if on_progress:
            on_progress(len(decoded.images))
    return images[: len(kept)], kept, skipped


def _in_order(pictures: Sequence[Picture], geometry: Geometry) -> Iterator[Decoded]:
    """Parts of the pictures, decoded; a few of them ahead of what was taken."""
    starts = range(0, len(pictures), FILES_PER_TASK)
    tasks = (pictures[start : start + FILES_PER_TASK] for start in starts)
    processes = min(cores(), len(starts))
    if len(pictures) < FILES_WORTH_PROCESSES or processes < 2:
        yield from (decode_some(task, geometry) for task in tasks)
        return
    decoders = Decoders(geometry, processes)
    waiting: list[Future[Decoded]] = []
    try:
        for task in tasks:
            waiting.append(decoders.submit(task))
            if len(waiting) > 2 * processes:
                yield decoders.finished(waiting.pop(0))
        yield from (decoders.finished(future) for future in waiting)
    finally:
        decoders.close()
