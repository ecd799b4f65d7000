"""Call functions with hostile arguments in child processes, and report which of them crash or hang.

This is the core of the harnesses for operators of all formats. :func:`run_in_children` takes subjects (a
name, a function and a maker of arguments) and returns for each how its calls ended.
"""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Make = Callable[[random.Random], Any]
"""A maker of an argument, which may be hostile or not."""
MORE_BYTES = 2**30
SECONDS = 10.0
AT_ONCE = 40
"""Most subjects of one child: forking a process that has imported torch costs as much as many calls."""
_NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")


@dataclass(frozen=True)
class Subject:
    """A function and the maker of its arguments.

    Args:
        name: Name of the subject in reports.
        call: The function under test.
        make: Returns the positional and keyword arguments of one call.
    """

    name: str
    call: Callable[..., Any]
    make: Callable[[random.Random], tuple[list[Any], dict[str, Any]]]


@dataclass
class Outcome:
    """Outcome of the calls of one subject.

    Args:
        ended: ``ok``, or how the first bad call ended: ``signal 11``, ``memory`` or ``time``.
        calls: Number of calls.
        returned: Number of calls that returned a result; the others raised an error.
        culprit: Seed of the first bad call.
    """

    ended: str = "ok"
    calls: int = 0
    returned: int = 0
    culprit: str = ""
    errors: Counter[str] = field(default_factory=Counter)


def run_in_children(
    subjects: Sequence[Subject], calls: int, *, seed: int = 0, seconds: float = SECONDS
) -> dict[str, Outcome]:
    """Call each subject ``calls`` times in child processes, ``AT_ONCE`` subjects to a child.

    A child may use 1 GiB more memory than at its start, and each call may take ``seconds``. A bad call ends
    its child; a new child takes the remaining subjects.
    """
    outcomes: dict[str, Outcome] = {}
    left = list(subjects)
    while left:
        ended = _in_child(left[:AT_ONCE], calls, seed, seconds)
        outcomes |= {subject.name: outcome for subject, outcome in zip(left, ended, strict=False)}
        left = left[len(ended) :]
    return outcomes


def arguments_of(subject: Subject, seed: int, call: int) -> tuple[list[Any], dict[str, Any]]:
    """Make the arguments of one call again, to debug it."""
    torch.manual_seed(seed + call)
    return subject.make(random.Random(f"{subject.name} {seed} {call}"))


def _in_child(subjects: Sequence[Subject], calls: int, seed: int, seconds: float) -> list[Outcome]:
    """Return the outcomes of the called subjects: all, or those up to the first bad one."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            _limit()
            for subject in subjects:
                _calls(subject, calls, seed, writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    try:
        news, ended = _watch(reading, child, seconds)
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    begun = news.count(b".")
    if ended == "ok" and os.WIFSIGNALED(status):
        ended = f"signal {os.WTERMSIG(status)}"
    if ended == "ok" and begun < calls * len(subjects):
        ended = "ended early"
    of_each = [news[start : start + 2 * calls] for start in range(0, len(news), 2 * calls)] or [b""]
    outcomes = [Outcome(calls=each.count(b"."), returned=each.count(b"+")) for each in of_each]
    if ended != "ok":
        last = outcomes[-1]
        last.ended, last.culprit = ended, f"{seed} {last.calls - 1}"
    return outcomes


def _limit() -> None:
    used = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData")
    )
    resource.setrlimit(resource.RLIMIT_DATA, (used + MORE_BYTES, used + MORE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _calls(subject: Subject, calls: int, seed: int, writing: int) -> None:
    """Report the start of each call (``.``) and its end: ``+`` result, ``-`` error, ``m`` memory."""
    for call in range(calls):
        args, named = arguments_of(subject, seed, call)
        os.write(writing, b".")
        try:
            subject.call(*args, **named)
            end = b"+"
        except MemoryError:
            end = b"m"
        except Exception as error:
            end = b"m" if any(words in str(error) for words in _NO_MEMORY) else b"-"
        del args, named
        os.write(writing, end)


def _watch(reading: int, child: int, seconds: float) -> tuple[bytes, str]:
    """Read the reports of a child until it ends; returns them and ``ok``, ``time`` or ``memory``."""
    whole = b""
    deadline = time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            return whole, "time"
        news = os.read(reading, 4096)
        if not news:
            return whole, "ok"
        deadline = time.monotonic() + seconds
        whole += news
        if b"m" in news:
            os.kill(child, signal.SIGKILL)
            return whole[: whole.index(b"m") + 1], "memory"


INTEGERS = (-1, 0, 1, 2, 3, 4, 7, -2, -3, 100, 1000, 10**5, 2**31 - 1, 2**31, 2**32, 2**40, 2**62)
INTEGERS += (2**63 - 1, -(2**63), -(2**31), -(10**5))
NUMBERS = (0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 3.0)
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
_SIDES = (0, 1, 1, 2, 2, 3, 4, 5, 8)


def hostile_int(rng: random.Random) -> int:
    """Return a whole number: small, negative, zero or huge."""
    return rng.choice(INTEGERS)


def hostile_number(rng: random.Random) -> float:
    """Return a number, which may be fractional, infinite or NaN."""
    return rng.choice(NUMBERS) if rng.random() < 0.6 else rng.choice(INTEGERS)


def hostile_tensor(rng: random.Random) -> torch.Tensor:
    """Return a tensor of any type, shape and stride: empty, scalar, a view of a small buffer, or with NaN."""
    shape = [rng.choice(_SIDES) for _ in range(rng.choice((0, 1, 1, 2, 3, 4, 4, 5)))]
    dtype = torch.float32 if rng.random() < 0.5 else rng.choice(DTYPES)
    tensor = torch.randint(-3, 9, shape).to(dtype) if rng.random() < 0.4 else torch.randn(shape).to(dtype)
    kind = rng.random()
    if kind < 0.15:
        buffer = torch.randint(0, 4, (64,)).to(dtype)
        return buffer.as_strided(shape, [rng.choice((0, 0, 1, 2)) for _ in shape])  # 8*5*2 is beyond 64
    if kind < 0.3 and tensor.dim():
        return tensor.transpose(0, -1)
    if kind < 0.4:
        return torch.zeros((), dtype=dtype).expand(shape)
    if kind < 0.55 and dtype.is_floating_point and tensor.numel():
        return torch.full(shape, rng.choice(NUMBERS), dtype=torch.float64).to(dtype)
    if kind < 0.65 and not dtype.is_floating_point and tensor.numel():
        return torch.full(shape, rng.choice((2**31 - 1, -(2**31), 2**62, -1))).to(dtype)
    return tensor
