"""Running commands as Ray tasks on a cluster whose machines share a file system."""

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
    """Connect to the cluster at RAY_ADDRESS or on this machine; if there is none, start a local one.

    Args:
        gpus: Share of a GPU for each command, such as 0.25 for four commands on one GPU; None means a whole
            GPU if the cluster has any.

    Yields:
        The engine that runs commands on the cluster.

    Raises:
        InstallationError: Ray is not installed.
        UsageError: The cluster has no GPU to share.
    """
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError as error:
        raise InstallationError("Ray is not installed", "pip install ray") from error
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
    """Run commands like ``children.run_all``, but let Ray decide how many run at a time."""
    threads, folder = children.with_threads(1), str(Path.cwd())  # Ray starts workers in another folder

    def start(new: Iterable[children.Command]) -> dict[Any, str]:
        return {task.remote(list(command), threads, folder): name for name, command in new}

    running = start(commands)
    asked = False
    while running:
        if stop.requested and not asked:
            asked = True
            for reference in running:
                ray.cancel(reference)
        ready, _ = ray.wait(list(running), timeout=_SECONDS_BETWEEN_LOOKS)
        for reference in ready:
            more = on_end(running.pop(reference), _result(ray, reference))
            if not stop.requested:
                running |= start(more)


def _result(ray: Any, reference: Any) -> children.CommandResult:
    """The result of a task; a task that was cancelled or whose machine was lost has failed."""
    try:
        ended: children.CommandResult = ray.get(reference)
    except ray.exceptions.RayError as error:
        return children.CommandResult(code=1, out="", err=f"{type(error).__name__}: {error}", seconds=0.0)
    return ended
