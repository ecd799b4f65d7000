"""Images decoded during training, for sets that do not fit into memory; as many as fit are cached.

The images returned do not depend on the cache, or on the number and speed of the decoding processes.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding.image import FORMATS_HINT
from bcu_cli.images.decoding.pace import Pace
from bcu_cli.images.decoding.processes import FILES_PER_TASK, Decoders, cores
from bcu_cli.images.folder import require_enough
from bcu_cli.images.sources.hidden import Hidden
from bcu_cli.images.sources.listing import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from bcu_cli.images.decoding.image import Geometry
    from bcu_cli.images.decoding.processes import Decoded
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.images.sources.listing import Listing

AHEAD_BYTES, FEWEST_AHEAD, MOST_AHEAD = 2**27, 2, 16
"""Limits of decoding ahead: bytes of all batches, and their smallest and largest number."""
FEWEST_PER_TASK = 8
MOST_ATTEMPTS = 1000
"""Number of images that are tried in place of an unreadable one."""
_NOT_KEPT = -1

Images: TypeAlias = "Tensor | Stream"
"""Images that have ``len`` and ``shape`` and can be indexed, uint8 ``[N, C, H, W]``."""


class Stream:
    """Images that are indexed like a uint8 tensor ``[N, C, H, W]`` and decoded when they are used.

    An unreadable image is replaced by another one, chosen at random by its position alone.

    Args:
        listing: The images.
        geometry: Size and cropping of the decoded images.
        cache: Bytes of decoded images that are cached, the first ones used. The batches decoded ahead
            (``AHEAD_BYTES`` or ``FEWEST_AHEAD`` batches) come on top, and up to as much while they arrive.
        processes: Number of decoding processes; None takes one per core.

    Attributes:
        decoded: Number of images decoded.
        decoding_seconds: Seconds of decoding, summed over the processes.
        waited_seconds: Seconds that training waited for images while the device was idle.
    """

    def __init__(
        self, listing: Listing, geometry: Geometry, *, cache: int, processes: int | None = None
    ) -> None:
        self.shape = torch.Size((len(listing), geometry.channels, geometry.height, geometry.width))
        self.processes = processes or cores()
        self.decoded, self.decoding_seconds, self.waited_seconds = 0, 0.0, 0.0
        self._listing = listing
        self._decoders = Decoders(geometry, self.processes)
        room = min(len(listing), cache // geometry.bytes)
        self._kept = torch.empty((room, *self.shape[1:]), dtype=torch.uint8)
        self._kept_at = np.full(len(listing), _NOT_KEPT, dtype=np.int64)
        self._number_kept = 0
        self._faults: dict[int, str] = {}
        self._notes: dict[str, int] = {}
        self._ahead: deque[_Batch] = deque()
        self._coming: Iterator[Tensor] = iter(())
        self._finish_work: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The images at a slice, or at an index, int64 ``[M]``: uint8 ``[M, C, H, W]``, on the CPU."""
        return self.take(torch.arange(len(self))[index])

    @property
    def kept(self) -> int:
        """Number of images in the cache."""
        return self._number_kept

    @property
    def skipped(self) -> tuple[tuple[Path, str], ...]:
        """Files found to be unreadable so far, with the reason."""
        return tuple((named(self._listing[i]), self._faults[i]) for i in sorted(self._faults))

    @property
    def scaled(self) -> tuple[tuple[Path, str], ...]:
        """How values of more than 8 bits were scaled so far, each with the first such file."""
        return tuple((named(self._listing[i]), note) for note, i in self._notes.items())

    def pace(self, *, images: int, seconds: float) -> Pace:
        """The throughput of decoding beside that of a training.

        Args:
            images: Number of images trained on; each view counts.
            seconds: Duration of the training in seconds.
        """
        return Pace(
            images=images,
            training_seconds=seconds,
            waited_seconds=self.waited_seconds,
            decoded=self.decoded,
            decoding_seconds=self.decoding_seconds,
            processes=self.processes,
        )

    def follow(self, batches: Iterator[Tensor], finish_work: Callable[[], None]) -> None:
        """Start decoding the batches of a training ahead of their use.

        Args:
            batches: The index of each batch, int64 ``[M]`` on the CPU, in the order of their use.
            finish_work: Called before waiting for images; it returns when the device is idle.
        """
        self._forget()
        self._coming, self._finish_work = batches, finish_work
        self._look_ahead()

    def take(self, index: Tensor) -> Tensor:
        """The images at an index, int64 ``[M]`` on the CPU: uint8 ``[M, C, H, W]``, on the CPU.

        Raises:
            ImagesError: Too many decoding processes died, or hardly any file is an image.
        """
        followed = bool(self._ahead) and torch.equal(self._ahead[0].index, index)
        batch = self._ahead.popleft() if followed else self._begin(index)
        self._look_ahead()
        self._gather(batch, wait=False)
        if batch.waiting:
            self._finish_work()
            started = time.perf_counter()
            self._gather(batch, wait=True)
            self.waited_seconds += time.perf_counter() - started if followed else 0.0
        return batch.images

    def close(self) -> None:
        """End the decoding processes."""
        self._forget()
        self._decoders.close()

    def _forget(self) -> None:
        for batch in self._ahead:
            for future in batch.waiting:
                future.cancel()
        self._ahead.clear()
        self._coming = iter(())

    def _look_ahead(self) -> None:
        for batch in self._ahead:
            self._gather(batch, wait=False)
        while len(self._ahead) < self._most_ahead():
            index = next(self._coming, None)
            if index is None:
                return
            self._ahead.append(self._begin(index))

    def _most_ahead(self) -> int:
        if not self._ahead:
            return FEWEST_AHEAD
        return min(max(AHEAD_BYTES // max(1, self._ahead[0].images.nbytes), FEWEST_AHEAD), MOST_AHEAD)

    def _begin(self, index: Tensor) -> _Batch:
        """Start decoding the images at an index that are not cached."""
        pinned = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # for asynchronous copies
        images = torch.empty((len(index), *self.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        batch = _Batch(index=index, images=images, waiting={})
        self._request(batch, np.arange(len(index)))
        return batch

    def _request(self, batch: _Batch, rows: Any) -> None:
        """Fill rows of a batch from the cache, and start decoding the other rows."""
        sources = batch.index.numpy()[rows]
        if self._faults:
            sources = np.array([self._source(i) for i in sources.tolist()], dtype=np.int64)
        places = self._kept_at[sources]
        here = places != _NOT_KEPT
        if len(rows) == len(batch.index) and here.all():
            torch.index_select(self._kept, 0, torch.from_numpy(places), out=batch.images)
        elif here.any():
            batch.images[torch.from_numpy(rows[here])] = self._kept[torch.from_numpy(places[here])]
        rows, sources = rows[~here], sources[~here]
        size = min(max(-(-len(rows) // self.processes), FEWEST_PER_TASK), FILES_PER_TASK)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            future = self._decoders.submit([self._listing[int(i)] for i in sources[part]])
            batch.waiting[future] = (rows[part], sources[part])

    def _gather(self, batch: _Batch, *, wait: bool) -> None:
        """Store the decoded images, and start decoding replacements for unreadable ones."""
        while ready := [future for future in batch.waiting if wait or future.done()]:
            for future in ready:
                decoded = future.result()
                rows, sources = batch.waiting.pop(future)
                self.decoded += len(rows)
                self.decoding_seconds += decoded.seconds
                bad = np.array(sorted(decoded.faults), dtype=np.int64)
                good = np.setdiff1d(np.arange(len(rows)), bad)
                images = torch.from_numpy(decoded.images)[good]
                batch.images[torch.from_numpy(rows[good])] = images
                self._keep(sources[good], images)
                self._faults |= {int(sources[i]): reason for i, reason in decoded.faults.items()}
                for note, i in decoded.notes.items():
                    self._notes.setdefault(note, int(sources[i]))
                if len(bad):
                    self._request(batch, rows[bad])

    def _keep(self, sources: Any, images: Tensor) -> None:
        """Keep images that are not kept yet, while there is room."""
        new = np.flatnonzero(self._kept_at[sources] == _NOT_KEPT)
        new = new[np.unique(sources[new], return_index=True)[1]][: len(self._kept) - self._number_kept]
        places = np.arange(self._number_kept, self._number_kept + len(new))
        self._kept[torch.from_numpy(places)] = images[torch.from_numpy(new)]
        self._kept_at[sources[new]] = places
        self._number_kept += len(new)

    def _source(self, position: int) -> int:
        """Index of the image at a position: the position itself, or a random readable replacement."""
        if position not in self._faults:
            return position
        others = random.Random(position)  # noqa: S311 - images are no secret
        for _ in range(MOST_ATTEMPTS):
            if (other := others.randrange(len(self))) not in self._faults:
                return other
        raise ImagesError(f"hardly any file in {self._listing.root} is a readable image", FORMATS_HINT)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """A batch that is being decoded.

    Args:
        index: Index of the images, int64 ``[M]``.
        images: Memory for the decoded images, uint8 ``[M, C, H, W]``.
        waiting: The pending chunks, each with its rows of the batch and the indices of its images.
    """

    index: Tensor
    images: Tensor
    waiting: dict[Future[Decoded], tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class StreamedSet:
    """Unlabeled images that are decoded when they are used; the counterpart of ``ImageSet``.

    Args:
        images: The images.
        root: The folder or the tar archive.
        found: Number of files in the folder, before any random selection.
        sha256: SHA-256 of the images' names and of the decoded images that were held out.
        faults: Broken links and archives that could not be read to their end, with the reason.
        hidden: Files and folders that were skipped for their names.
        held_out_scaled: How values of more than 8 bits were scaled in the images held out.
    """

    images: Stream
    root: Path
    found: int
    sha256: str
    faults: tuple[tuple[Path, str], ...] = ()
    hidden: Hidden = field(default_factory=Hidden)
    held_out_scaled: tuple[tuple[Path, str], ...] = ()
    labels: None = None
    classes: tuple[str, ...] = ()

    SHA256_IS_OF: ClassVar[str] = "the images' names, and the decoded images held out"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def skipped(self) -> tuple[tuple[Path, str], ...]:
        """Files found to be unreadable so far, with the reason."""
        return self.faults + self.images.skipped

    @property
    def scaled(self) -> tuple[tuple[Path, str], ...]:
        """How values of more than 8 bits were scaled so far, each with the first such file."""
        return self.held_out_scaled + self.newly_scaled

    @property
    def newly_scaled(self) -> tuple[tuple[Path, str], ...]:
        """How values were scaled in ways that no held-out image needed, each with the first such file."""
        known = {how for _, how in self.held_out_scaled}
        return tuple((path, how) for path, how in self.images.scaled if how not in known)


def spread(images: Stream, number: int = 1000) -> Tensor:
    """Evenly spaced images of a stream: from ``number`` to twice as many, or all where there are fewer."""
    return images[:: max(1, len(images) // number)]


def open_stream(
    listing: Listing, held_out: ImageSet, geometry: Geometry, *, cache: int, of: int
) -> StreamedSet:
    """Open images that are decoded when they are used.

    Args:
        listing: The images.
        held_out: Held-out images of the same folder, already decoded.
        geometry: Size and cropping of the decoded images.
        cache: Bytes of decoded images that are cached, beside those held out.
        of: Number of images selected to be held out, unreadable ones included.

    Raises:
        ImagesError: Fewer than ``FEWEST_IMAGES`` images are readable, as estimated from those held out.
    """
    require_enough((len(listing) + of) * len(held_out) // max(1, of), held_out)
    digest = hashlib.sha256(listing.sha256().encode())
    digest.update(held_out.images.numpy().data)
    return StreamedSet(
        images=Stream(listing, geometry, cache=cache),
        root=listing.root,
        found=listing.found,
        sha256=digest.hexdigest(),
        faults=held_out.skipped,
        hidden=held_out.hidden,
        held_out_scaled=held_out.scaled,
    )
