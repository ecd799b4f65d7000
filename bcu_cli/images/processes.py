"""Decoding in processes of their own, so that an image which breaks its decoder is skipped alone.

Imports no torch, as ``decoding.py``.
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
from bcu_cli.images.worker import LENGTH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import BufferedReader

    from numpy.typing import NDArray

    from bcu_cli.images.decoding import Geometry, Picture

FILES_PER_TASK = 64
FILES_WORTH_PROCESSES = 256
"""Below this, one process is done before a second one would have started; measured on two cores."""

MOST_SECONDS = 15.0
"""For one image. The largest that is read, of 89 million pixels, takes 4 on a core of its own."""

MOST_DEATHS = 16
"""Processes that images may break before the whole set is refused: each may take ``MOST_SECONDS``."""

_LONGEST_ANSWER = 2**20
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from bcu_cli.images import worker
worker.serve()
"""
"""The process, which finds modules where its parent does and never in the folder that it runs in."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What became of some images.

    Args:
        images: uint8 ``[N, C, H, W]``; of those that are no image anything.
        faults: Position -> why it is no image that can be read.
        notes: How values of more than 8 bits were scaled -> the position of the first such image.
        seconds: That decoding took.
    """

    images: NDArray[np.uint8]
    faults: dict[int, str]
    notes: dict[str, int]
    seconds: float


def cores() -> int:
    """How many this process may use; those of a machine are divided among the processes of torchrun."""
    return max(1, _of_machine() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _of_machine() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _DeathError(Exception):
    """A process that died: while it decoded the image at ``position``, or None for no image's fault."""

    def __init__(self, position: int | None, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


class _Worker:
    """One process that decodes, from its parent's side.

    It is in a session of its own, so that Ctrl-C at the terminal reaches the parent alone. It ends when its
    stdin does, which is also when the parent is killed.

    Raises:
        ImagesError: The system lets no process be started.
    """

    def __init__(self) -> None:
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # whose stacks count as memory
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

    def decode(self, pictures: Sequence[Picture], geometry: Geometry) -> Decoded:
        """Decode some images.

        Raises:
            _DeathError: The process died on the way.
        """
        assert self.process.stdin and self.process.stderr  # noqa: S101 - for the types
        request = pickle.dumps((Path.cwd(), MOST_SECONDS, list(pictures), geometry))
        with suppress(OSError):  # it is dead: there will be no answer
            self.process.stdin.write(len(request).to_bytes(LENGTH_BYTES, "big") + request)
            self.process.stdin.flush()
        shape = (len(pictures), geometry.channels, geometry.height, geometry.width)
        images = np.empty(shape, dtype=np.uint8)
        answers = cast("BufferedReader", self.process.stdout)
        whole = answers.readinto(images.reshape(-1).data) == images.nbytes
        line = answers.readline(_LONGEST_ANSWER) if whole else b""
        if not line.endswith(b"\n"):
            raise self._death(len(pictures))
        self.process.stderr.read(len(pictures) + 1)
        answer = json.loads(line)
        faults = {int(position): str(reason) for position, reason in answer["faults"].items()}
        notes = {str(note): int(position) for note, position in answer["notes"].items()}
        return Decoded(images=images, faults=faults, notes=notes, seconds=float(answer["seconds"]))

    def _death(self, number: int) -> _DeathError:
        """The image that it died of: the one that was begun last."""
        assert self.process.stderr  # noqa: S101 - for the types
        begun = len(self.process.stderr.read())
        code = self.process.wait()
        return _DeathError(begun - 1 if 0 < begun <= number else None, _cause(code))

    def kill(self) -> None:
        """End the process at once; whoever waits for its answer learns of it."""
        self.process.kill()

    def end(self) -> None:
        """End the process and leave nothing of it."""
        self.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError):  # what it never read
                pipe.close()  # type: ignore[union-attr]


def _cause(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"it took more than {MOST_SECONDS:.0f} seconds to decode"
    if code == -signal.SIGKILL:  # Linux kills whoever takes most memory when there is none left
        return "the process that decoded it was killed, as for a lack of memory"
    if code < 0:
        with suppress(ValueError):  # a signal without a name
            return f"it broke its decoder ({signal.Signals(-code).name})"
    return f"it broke its decoder (exit code {code})"


_spare: list[_Worker] = []
"""At most one process that has nothing to do: the next set of images need not wait for one to start."""


@atexit.register
def _end_spare() -> None:
    while _spare:
        _spare.pop().end()


class Decoders:
    """Processes that decode; they are started as they are needed, and anew where an image broke one.

    Args:
        geometry: What each image becomes.
        processes: At most so many.
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
        """The processes that there are now."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, pictures: Sequence[Picture]) -> Future[Decoded]:
        """Have some decoded.

        Its result raises ``ImagesError`` where ``MOST_DEATHS`` processes died, whatever of.
        """
        return self._threads.submit(self._decode, pictures)

    def close(self) -> None:
        """End the processes at once, whatever they have in hand."""
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

    def _decode(self, pictures: Sequence[Picture]) -> Decoded:
        """In a thread: have a process decode them all, but those that a process has died of."""
        deadly: dict[int, str] = {}
        while True:
            rest = [i for i in range(len(pictures)) if i not in deadly]
            worker = self._take()
            try:
                decoded = worker.decode([pictures[i] for i in rest], self._geometry)
            except _DeathError as death:
                self._bury(worker, death)
                if death.position is not None:
                    deadly[rest[death.position]] = death.reason
            else:
                self._idle.append(worker)
                return _spread(decoded, rest, deadly) if deadly else decoded

    def _take(self) -> _Worker:
        for pool in (self._idle, _spare):
            with suppress(IndexError):
                worker = pool.pop()
                self._workers.add(worker)
                return worker
        worker = _Worker()
        self._workers.add(worker)
        if self._closed:  # since this thread asked: close may not have seen it
            worker.kill()
        return worker

    def _bury(self, worker: _Worker, death: _DeathError) -> None:
        self._workers.discard(worker)
        worker.end()
        self._deaths += 1
        if self._closed or self._deaths >= MOST_DEATHS:
            raise ImagesError(
                f"{self._deaths} processes that decoded the images died; of the last one: {death.reason}",
                "look for huge or damaged files, or free some memory",
            )


def _spread(decoded: Decoded, places: list[int], deadly: dict[int, str]) -> Decoded:
    """What was decoded at its places among all, and what was not at its own."""
    number = len(places) + len(deadly)
    images = np.zeros((number, *decoded.images.shape[1:]), dtype=np.uint8)
    images[places] = decoded.images
    faults = {places[i]: reason for i, reason in decoded.faults.items()} | deadly
    notes = {note: places[i] for note, i in decoded.notes.items()}
    return Decoded(images=images, faults=dict(sorted(faults.items())), notes=notes, seconds=decoded.seconds)


def decode_many(
    pictures: Sequence[Picture],
    geometry: Geometry,
    *,
    on_progress: Callable[[int], None] | None = None,
    notes: dict[str, int] | None = None,
) -> tuple[NDArray[np.uint8], list[int], list[tuple[int, str]]]:
    """Decode images in several processes, in their order.

    Args:
        pictures: Files or arrays.
        geometry: What each becomes.
        on_progress: Called with the number of images decoded since the last call.
        notes: Takes how values of more than 8 bits were scaled, with the index of the first such image.

    Returns:
        The images, uint8 ``[N, C, H, W]``; the index into ``pictures`` of each; and the indices of those
        that are no readable image, with the reason.

    Raises:
        ImagesError: ``MOST_DEATHS`` decoding processes died.
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
        if notes is not None:
            notes |= {note: start + i for note, i in decoded.notes.items() if note not in notes}
        start += len(decoded.images)
        if on_progress:
            on_progress(len(decoded.images))
    return images[: len(kept)], kept, skipped


def _in_order(pictures: Sequence[Picture], geometry: Geometry) -> Iterator[Decoded]:
    """Parts of the images, decoded; a few of them ahead of what was taken."""
    starts = range(0, len(pictures), FILES_PER_TASK)
    processes = min(cores(), len(starts)) if len(pictures) >= FILES_WORTH_PROCESSES else 1
    decoders = Decoders(geometry, max(1, processes))
    waiting: list[Future[Decoded]] = []
    try:
        for start in starts:
            waiting.append(decoders.submit(pictures[start : start + FILES_PER_TASK]))
            if len(waiting) > 2 * processes:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        decoders.close()
