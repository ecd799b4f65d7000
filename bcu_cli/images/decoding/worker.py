"""The decoding process: its limits and its protocol.

A request is a pickle from the parent, preceded by its length. The process writes the pixels of every image to
stdout, and then a line of JSON: the faults by position, how values were scaled, and the seconds taken.

It writes one byte to stderr as it begins an image, and one more when all are done. So the parent knows which
image crashed it. The output of decoders is discarded. The process does not import torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from bcu_cli.images.decoding.image import decode
from bcu_cli.images.decoding.unreadable import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.images.decoding.image import Geometry, RawImage

MOST_MEMORY = 2 * 2**30
"""Most bytes of memory, Python included; the largest image with transparency takes 1.5 GiB."""

LENGTH_BYTES = 8
PIPE_BYTES = 2**20
"""Size of the stdout pipe, so that decoding need not wait for the parent to read."""


def serve() -> None:
    """Answer the requests on stdin until the parent closes it or ends."""
    answers, progress = os.fdopen(os.dup(1), "wb", buffering=2**18), os.dup(2)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # beyond the user's limit of pipe memory: the default size will do
            fcntl.fcntl(answers, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _limit_itself()
    requests = sys.stdin.buffer
    while length := requests.read(LENGTH_BYTES):
        request = requests.read(int.from_bytes(length, "big"))
        folder, seconds, raw_images, geometry = pickle.loads(request)  # noqa: S301 - from our parent
        os.chdir(folder)
        started, faults, notes = time.perf_counter(), dict[int, str](), dict[str, int]()
        for position, image in enumerate(raw_images):
            os.write(progress, b".")
            signal.setitimer(signal.ITIMER_REAL, seconds)
            done: list[str] = []
            pixels, fault = _decoded(image, geometry, done.append)
            signal.setitimer(signal.ITIMER_REAL, 0)  # the time of the parent's reading does not count
            answers.write(pixels)
            if fault:
                faults[position] = fault
            else:
                notes |= {note: position for note in done if note not in notes}
        os.write(progress, b".")
        answer = {"faults": faults, "notes": notes, "seconds": time.perf_counter() - started}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _limit_itself() -> None:
    """Let the system end this process if it takes too long or too much memory, or writes a file."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even in the middle of a decoder
    limits = {resource.RLIMIT_DATA: MOST_MEMORY, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for limit, most in limits.items():
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _decoded(image: RawImage, geometry: Geometry, on_note: Callable[[str], None]) -> tuple[memoryview, str]:
    """The pixels of an image and an empty text; or zeros and the reason why it is unreadable."""
    try:
        return decode(image, geometry, on_note=on_note).data, ""
    except UnreadableError as error:
        return memoryview(bytes(geometry.bytes)), str(error) or "it cannot be read"
