"""Decoding in separate processes, so that an image that crashes its decoder is skipped alone.

It is kept by hand because a pool of ``concurrent.futures`` is lost as a whole when one of its processes dies,
and does not say which image that was decoding. This module does not import torch.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding.worker import LENGTH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import BufferedReader

    from numpy.typing import NDArray

    from bcu_cli.images.decoding.image import Geometry, RawImage

FILES_PER_TASK = 64
FILES_WORTH_PROCESSES = 256
"""Fewest images for which more than one process is started.

With fewer, one process is done before a second one has started (measured on two cores)."""

MOST_SECONDS = 15.0
"""Time limit of one image in seconds. The largest allowed image, of 89 million pixels, takes 4 s."""

MOST_DEATHS = 16
"""Number of processes that may die before the whole set is refused; each may take ``MOST_SECONDS``."""

_LONGEST_ANSWER = 2**20
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from bcu_cli.images.decoding import worker
worker.serve()
"""
"""Program of a decoding process. It imports from its parent's paths, never from the working folder."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The result of decoding a few images.

    Args:
        images: uint8 ``[N, C, H, W]``; undefined values for unreadable images.
        faults: Positions of the unreadable images, each with the reason.
        notes: How values of more than 8 bits were scaled, each with the position of the first such image.
        seconds: Decoding time in seconds.
    """

    images: NDArray[np.uint8]
    faults: dict[int, str]
    notes: dict[str, int]
    seconds: float


def cores() -> int:
    """Number of cores that this process may use; the processes of torchrun share those of a machine."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _DeathError(Exception):
    """A decoding process died.

    Args:
        position: Position of the image that it was decoding; None where no image is to blame.
        reason: The cause.
    """

    def __init__(self, position: int | None, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


class _Worker:
    """The parent's handle of one decoding process.

    The process has a separate session, so that Ctrl-C at the terminal reaches the parent alone. It ends when
    its stdin is closed, which also happens when the parent is killed.

    Raises:
        ImagesError: The system does not start the process.
    """

    def __init__(self) -> None:
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # thread stacks count as memory
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **threads},
                start_new_session=True,
            )
        except OSError as error:
            raise ImagesError(
                f"no process could be started to decode images: {error.strerror}", "end some others, or wait"
            ) from error

    def decode(self, raw_images: Sequence[RawImage], geometry: Geometry) -> Decoded:
        """Decode images in the process, and wait for the result.

        Raises:
            _DeathError: The process died.
        """
        assert self.process.stdin and self.process.stderr  # noqa: S101 - for the types
        request = pickle.dumps((Path.cwd(), MOST_SECONDS, list(raw_images), geometry))
        with suppress(OSError):  # the process is dead: reading its answer shows that
            self.process.stdin.write(len(request).to_bytes(LENGTH_BYTES, "big") + request)
            self.process.stdin.flush()
        shape = (len(raw_images), geometry.channels, geometry.height, geometry.width)
        images = np.empty(shape, dtype=np.uint8)
        answers = cast("BufferedReader", self.process.stdout)
        whole = answers.readinto(images.reshape(-1).data) == images.nbytes
        line = answers.readline(_LONGEST_ANSWER) if whole else b""
        if not line.endswith(b"\n"):
            raise self._death(len(raw_images))
        self.process.stderr.read(len(raw_images) + 1)
        answer = json.loads(line)
        faults = {int(position): str(reason) for position, reason in answer["faults"].items()}
        notes = {str(note): int(position) for note, position in answer["notes"].items()}
        return Decoded(images=images, faults=faults, notes=notes, seconds=float(answer["seconds"]))

    def _death(self, number: int) -> _DeathError:
        """The error for a process that died; the image begun last is to blame."""
        assert self.process.stderr  # noqa: S101 - for the types
        begun = len(self.process.stderr.read())
        code = self.process.wait()
        return _DeathError(begun - 1 if 0 < begun <= number else None, _cause(code))

    def kill(self) -> None:
        """Kill the process; a thread that waits for its answer gets a ``_DeathError``."""
        self.process.kill()

    def end(self) -> None:
        """Kill the process, wait for its end, and close its pipes."""
        self.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError):  # of data that the process never read
                pipe.close()  # type: ignore[union-attr]


def _cause(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"it took more than {MOST_SECONDS:.0f} seconds to decode"
    if code == -signal.SIGKILL:  # Linux kills the largest process when memory runs out
        return "the process that decoded it was killed, as for a lack of memory"
    if code < 0:
        with suppress(ValueError):  # a signal without a name
            return f"it broke its decoder ({signal.Signals(-code).name})"
    return f"it broke its decoder (exit code {code})"


_spare: list[_Worker] = []
"""At most one idle process, so that the next set of images does not wait for one to start."""


@atexit.register
def _end_spare() -> None:
    while _spare:
        _spare.pop().end()


class Decoders:
    """A pool of decoding processes, started as needed and replaced where an image crashes one.

    Args:
        geometry: Size and cropping of the decoded images.
        processes: Largest number of processes.
    """

    def __init__(self, geometry: Geometry, processes: int) -> None:
        self._geometry = geometry
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="bcu-decoding")
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._deaths = 0
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Ids of the running processes."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, raw_images: Sequence[RawImage]) -> Future[Decoded]:
        """Start decoding images.

        Returns:
            A future of the decoded images. It raises ``ImagesError`` once ``MOST_DEATHS`` processes died.
        """
        return self._threads.submit(self._decode, raw_images)

    def close(self) -> None:
        """Kill the processes, also those that are decoding; one idle process is kept for later."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers - set(self._idle):
            worker.kill()
        self._threads.shutdown()
        if self._idle and not _spare:
            _spare.append(self._idle.pop())
            self._workers.discard(_spare[0])
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _decode(self, raw_images: Sequence[RawImage]) -> Decoded:
        """Decode images in one process, without those that crashed it before; runs in a thread."""
        fatal: dict[int, str] = {}
        while True:
            rest = [i for i in range(len(raw_images)) if i not in fatal]
            worker = self._take()
            try:
                decoded = worker.decode([raw_images[i] for i in rest], self._geometry)
            except _DeathError as death:
                self._remove(worker, death)
                if death.position is not None:
                    fatal[rest[death.position]] = death.reason
            else:
                self._idle.append(worker)
                return _with_fatal(decoded, rest, fatal) if fatal else decoded

    def _take(self) -> _Worker:
        for pool in (self._idle, _spare):
            with suppress(IndexError):
                worker = pool.pop()
                self._workers.add(worker)
                return worker
        worker = _Worker()
        self._workers.add(worker)
        if self._closed:  # close() may have run before the worker was in the set
            worker.kill()
        return worker

    def _remove(self, worker: _Worker, death: _DeathError) -> None:
        self._workers.discard(worker)
        worker.end()
        self._deaths += 1
        if self._closed or self._deaths >= MOST_DEATHS:
            raise ImagesError(
                f"{self._deaths} processes that decoded the images died; of the last one: {death.reason}",
                "look for huge or damaged files, or free some memory",
            )


def _with_fatal(decoded: Decoded, places: list[int], fatal: dict[int, str]) -> Decoded:
    """Add the images that crashed a process, as faults, to those that were decoded.

    Args:
        decoded: The decoded images.
        places: Their positions among all images.
        fatal: Positions of the images that crashed a process, each with the reason.
    """
    number = len(places) + len(fatal)
    images = np.zeros((number, *decoded.images.shape[1:]), dtype=np.uint8)
    images[places] = decoded.images
    faults = {places[i]: reason for i, reason in decoded.faults.items()} | fatal
    notes = {note: places[i] for note, i in decoded.notes.items()}
    return Decoded(images=images, faults=dict(sorted(faults.items())), notes=notes, seconds=decoded.seconds)


def decode_many(
    raw_images: Sequence[RawImage],
    geometry: Geometry,
    *,
    on_progress: Callable[[int], None] | None = None,
    notes: dict[str, int] | None = None,
) -> tuple[NDArray[np.uint8], list[int], list[tuple[int, str]]]:
    """Decode images in several processes, in their order.

    Args:
        raw_images: Files, members of archives, or arrays.
        geometry: Size and cropping of the decoded images.
        on_progress: Called with the number of images decoded since the last call.
        notes: Receives how values of more than 8 bits were scaled, each with the index of the first such
            image.

    Returns:
        The images, uint8 ``[N, C, H, W]``; the index into ``raw_images`` of each; and the indices of
        unreadable images, with the reason.

    Raises:
        ImagesError: ``MOST_DEATHS`` decoding processes died.
    """
    images = np.empty((len(raw_images), geometry.channels, geometry.height, geometry.width), dtype=np.uint8)
    kept: list[int] = []
    skipped: list[tuple[int, str]] = []
    start = 0
    for decoded in _in_order(raw_images, geometry):
        good = [i for i in range(len(decoded.images)) if i not in decoded.faults]
        images[len(kept) : len(kept) + len(good)] = decoded.images[good]
        kept += [start + i for i in good]
        skipped += [(start + i, reason) for i, reason in decoded.faults.items()]
        if notes is not None:
            notes |= {note: start + i for note, i in decoded.notes.items() if note not in notes}
        start += len(decoded.images)
        if on_progress:
            on_progress(len(decoded.images))
    return images[: len(kept)], kept, skipped


def _in_order(raw_images: Sequence[RawImage], geometry: Geometry) -> Iterator[Decoded]:
    """Yield the decoded images in chunks; a few chunks are decoded ahead."""
    starts = range(0, len(raw_images), FILES_PER_TASK)
    processes = min(cores(), len(starts)) if len(raw_images) >= FILES_WORTH_PROCESSES else 1
    decoders = Decoders(geometry, max(1, processes))
    waiting: list[Future[Decoded]] = []
    try:
        for start in starts:
            waiting.append(decoders.submit(raw_images[start : start + FILES_PER_TASK]))
            if len(waiting) > 2 * processes:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        decoders.close()
