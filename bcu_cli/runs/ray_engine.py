"""Commands as tasks of Ray, on the machines of a cluster that share a file system."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import InstallationError, UsageError
from bcu_cli.runs import children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bcu_cli.runs.children import Engine
    from bcu_cli.runs.resuming import Stop

_SECONDS_BETWEEN_LOOKS = 0.5


@contextmanager
def cluster(gpus: float | None) -> Iterator[Engine]:
    """Connect to the cluster that RAY_ADDRESS names or that runs here, else start one here.

    Args:
        gpus: The share of a GPU that each command takes, 0.25 for four beside each other; None is a whole one
            where the cluster has GPUs, and none where it has not.

    Yields:
        What runs commands there.

    Raises:
        InstallationError: Ray is not installed.
        UsageError: The cluster has no GPU to share.
    """
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError as error:
        raise InstallationError("Ray is not installed", 'pip install "bcu-cli[ray]"') from error
    ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    try:
        there = ray.cluster_resources().get("GPU", 0)
        if gpus and not there:
            raise UsageError(f"--gpus-per-cell {gpus}: the cluster has no GPU", "leave it out")
        share = gpus if gpus is not None else min(1, there)
        task = ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(children.run_one)

        yield partial(_run_all, ray, task)
    finally:
        ray.shutdown()


def _run_all(
    ray: Any,
    task: Any,
    commands: Iterable[children.Command],
    *,
    stop: Stop,
    on_end: Callable[[str, children.CommandResult], Iterable[children.Command]],
) -> None:
    """As ``children.run_all``; Ray decides how many run at a time."""
    threads, folder = children.with_threads(1), str(Path.cwd())  # Ray starts its workers elsewhere

    def start(some: Iterable[children.Command]) -> dict[Any, str]:
        return {task.remote(list(command), threads, folder): name for name, command in some}

    running = start(commands)
    asked = False
    while running:
        if stop.requested and not asked:
            asked = True
            for reference in running:
                ray.cancel(reference)
        ready, _ = ray.wait(list(running), timeout=_SECONDS_BETWEEN_LOOKS)
        for reference in ready:
            more = on_end(running.pop(reference), _ended(ray, reference))
            if not stop.requested:
                running |= start(more)


def _ended(ray: Any, reference: Any) -> children.CommandResult:
    """What a task ended with; one that was cancelled, or whose machine is lost, has failed."""
    try:
        ended: children.CommandResult = ray.get(reference)
    except ray.exceptions.RayError as error:
        return children.CommandResult(code=1, out="", err=f"{type(error).__name__}: {error}", seconds=0.0)
    return ended
