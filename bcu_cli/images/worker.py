"""The process that decodes images: what it sets for itself before it sees any, and how it answers.

It imports neither torch nor what starts it. For each request, a pickle of its parent's with its length in
front, it writes the pixels of every image in turn to stdout, and then a line of JSON: the faults by position,
how values were scaled, and the seconds taken. As it begins an image it writes one byte to stderr, and one
more once all are done, so that its parent knows which image it died of. Whatever decoders print goes nowhere.
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

from bcu_cli.images.decoding import decode
from bcu_cli.images.unreadable import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.images.decoding import Geometry, Picture

MOST_MEMORY = 2 * 2**30
"""Bytes for one image, Python included; the largest with transparency takes 1.5."""

LENGTH_BYTES = 8
PIPE_BYTES = 2**20
"""Room for the images that the parent has not fetched yet, so that decoding need not wait for it."""


def serve() -> None:
    """Decode what is asked for on stdin until there is no more: until the parent closes it, or is gone."""
    answers, progress = os.fdopen(os.dup(1), "wb", buffering=2**18), os.dup(2)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # the user has many pipes: a smaller one will do
            fcntl.fcntl(answers, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _limit_itself()
    requests = sys.stdin.buffer
    while length := requests.read(LENGTH_BYTES):
        request = requests.read(int.from_bytes(length, "big"))
        folder, seconds, pictures, geometry = pickle.loads(request)  # noqa: S301 - of our own parent
        os.chdir(folder)
        started, faults, notes = time.perf_counter(), dict[int, str](), dict[str, int]()
        for position, picture in enumerate(pictures):
            os.write(progress, b".")
            signal.setitimer(signal.ITIMER_REAL, seconds)
            done: list[str] = []
            pixels, fault = _decoded(picture, geometry, done.append)
            signal.setitimer(signal.ITIMER_REAL, 0)  # the parent may take its time to read
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
    """Have the system end whatever takes too long, takes too much memory or writes a file."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever a decoder is in the middle of
    limits = {resource.RLIMIT_DATA: MOST_MEMORY, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for limit, most in limits.items():
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _decoded(picture: Picture, geometry: Geometry, on_note: Callable[[str], None]) -> tuple[memoryview, str]:
    """The pixels of an image, or nothing but zeros and why."""
    try:
        return decode(picture, geometry, on_note=on_note).data, ""
    except UnreadableError as error:
        return memoryview(bytes(geometry.bytes)), str(error) or "it cannot be read"
