"""The engines that run the commands of a zoo or a benchmark: local processes, or a Ray cluster."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bcu_cli import events
from bcu_cli.errors import UsageError
from bcu_cli.runs import children

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bcu_cli.runs.children import Engine

LOCAL, RAY = "local", "ray"
_ENGINES = (LOCAL, RAY)
_BYTES_OF_A_CHILD = 2 * 2**30
"""A generous estimate: torch, CIFAR-10 and a ResNet-18 take 1.5 GB."""
_WARNING = "warning: "


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The choice of the engine, and of the number of commands at a time.

    Attributes:
        name: ``local`` or ``ray``.
        jobs: Number of commands at a time on the local engine, or ``auto``; None means ``auto``.
        gpus_per_cell: Share of a GPU for each command on Ray; None means a whole GPU if there are any.
    """

    name: str = LOCAL
    jobs: str | None = None
    gpus_per_cell: float | None = None

    def check(self) -> None:
        """Refuse invalid combinations.

        Raises:
            UsageError: There is no such engine, or it does not support an option.
        """
        if self.name not in _ENGINES:
            raise UsageError(f"there is no engine {self.name}", f"--engine takes {', '.join(_ENGINES)}")
        if self.name == RAY and self.jobs is not None:
            raise UsageError(
                "--jobs is for the local engine", "Ray runs as many as its processors and GPUs allow"
            )
        if self.name != RAY and self.gpus_per_cell is not None:
            raise UsageError("--gpus-per-cell is for --engine ray", "leave it out")


@contextmanager
def running(options: EngineOptions, *, jobs: int, threads: int, lock: int) -> Iterator[Engine]:
    """Start the chosen engine, and stop it when the context ends.

    Args:
        options: Which engine.
        jobs: Number of commands at a time on the local engine.
        threads: Number of threads of each command on the local engine.
        lock: A file descriptor that local commands inherit, so that they keep the lock on their folder.

    Raises:
        InstallationError: Ray is not installed.
        UsageError: The cluster has no GPU to share.
    """
    if options.name == RAY:
        from bcu_cli.runs import ray_engine

        with ray_engine.cluster(options.gpus_per_cell) as engine:
            yield engine
    else:
        environment = children.with_threads(threads)
        yield partial(children.run_all, jobs=jobs, environment=environment, keep_open=[lock])


def choose_parallelism(jobs: str | None, entries: int, *, on_gpu: bool) -> tuple[int, int]:
    """The number of commands that run at a time, and the number of threads of each.

    On a CPU, ``auto`` means one command for each core: two processes of one thread train 1.35 times as many
    images a second as one process of two (examples/benchmarks/many_at_once.py). On a GPU it means one
    command; more have not been measured. The result depends on the number of requested entries, not on the
    number that remain, because the number of threads can change the last bits of results.

    Args:
        jobs: Value of ``--jobs``; None means ``auto``.
        entries: Number of requested commands.
        on_gpu: Whether the commands compute on a GPU.

    Raises:
        UsageError: ``jobs`` is not a positive integer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs in {None, "auto"}:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        count = 1 if on_gpu else max(1, min(cores, entries, memory // _BYTES_OF_A_CHILD))
    elif jobs and re.fullmatch(r"[1-9]\d{0,3}", jobs, re.ASCII):
        count = int(jobs)
    else:
        raise UsageError(f"--jobs {jobs} is no number of models at a time", "--jobs 2, or auto")
    return count, max(1, cores // count)


def on_gpu(device: str) -> bool:
    """Whether the device that ``--device`` names is not the CPU."""
    import torch

    if device == "auto":  # these checks allocate no memory on a GPU
        return torch.cuda.is_available() or torch.backends.mps.is_available()
    return device != "cpu"


class Warnings:
    """Passes on the warnings of commands, each distinct one only once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def pass_on(self, name: str, text: str) -> None:
        """Report the warnings among the lines that the command ``name`` wrote to stderr."""
        for line in text.splitlines():
            if line.startswith(_WARNING) and line not in self._seen:
                self._seen.add(line)
                events.warn(f"{name}: {line.removeprefix(_WARNING)}")
