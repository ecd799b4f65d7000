"""A command on several devices: started by torch's own launcher, one process each, of which one talks."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from functools import wraps
from signal import SIGTERM, Signals
from typing import TYPE_CHECKING, ParamSpec

import typer

from bcu_cli import limits
from bcu_cli.cli import output
from bcu_cli.cli.exit_codes import INTERRUPTED
from bcu_cli.errors import RankLostError, TrainingError, UsageError
from bcu_cli.runs.children import with_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

P = ParamSpec("P")

_OURS = "BCU_LAUNCHED"
"""Set where it is :func:`launch` that started this process, and will say how it ended."""
_LOST = 3
"""What a process of ours ends with when another one has ended: those who know why do the talking."""
SECONDS_TO_STOP = 120
"""How long processes may take to end a step and keep the state, before they are killed."""


def started_by_torchrun() -> bool:
    """Whether this process is one of several, or could be; torchrun says so."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def as_rank(command: Callable[P, None]) -> Callable[P, None]:
    """A command that takes its place among the others where torchrun has started it."""

    @wraps(command)
    def with_others(*args: P.args, **kwargs: P.kwargs) -> None:
        if not started_by_torchrun():
            return command(*args, **kwargs)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
        with _one_voice():
            return command(*args, **kwargs)

    return with_others


def launch(words: Sequence[str], devices: int) -> int:
    """Run a command line of bcu once for each device; returns its exit code.

    Raises:
        TrainingError: One of the processes was killed, or does not answer.
    """
    import logging
    from uuid import uuid4

    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from bcu_cli.images.processes import cores

    for name, value in with_threads(max(1, cores() // devices)).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))
    os.environ[_OURS] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # the machine's name need not resolve
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    logging.disable(logging.CRITICAL)  # the launcher's own account of what the processes say themselves
    try:
        with limits.keeping_state():  # the processes keep it, and are waited for
            elastic_launch(config, sys.executable)("-m", "bcu_cli", *words)
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        return _outcome(error.failures, devices)
    finally:
        logging.disable(logging.NOTSET)
        del os.environ[_OURS]
    return 0


def check(devices: int | None) -> None:
    """Refuse ``--devices`` where torchrun has started another number of processes.

    Raises:
        UsageError: It has.
    """
    from bcu_cli.training import ranks

    if devices not in {None, ranks.count()}:
        raise UsageError(
            f"torchrun has started {ranks.count()} processes, and --devices says {devices}",
            "leave --devices out",
        )


def _outcome(failures: Mapping[int, ProcessFailure], devices: int) -> int:
    """The exit code of processes of which some have failed.

    Raises:
        TrainingError: None of them could say why.
    """
    hint = "the same command with --resume goes on from the state kept last"
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -SIGTERM:  # with which the others are asked to stop
            number = -failure.exitcode
            raise TrainingError(
                f"process {rank} of {devices} was ended by signal {number} ({Signals(number).name})",
                f"{hint}; if memory ran out, use fewer --devices or a smaller --batch-size",
            )
    codes = [each.exitcode for each in failures.values() if each.exitcode not in {_LOST, -SIGTERM}]
    if not codes:
        raise TrainingError(f"one of the {devices} processes does not answer", hint)
    return min(codes, key=lambda code: code == INTERRUPTED)  # what is asked to stop ends with that too


@contextmanager
def _one_voice() -> Iterator[None]:
    """Be one of the processes that torchrun has started: the first talks, or the first that fails."""
    from bcu_cli.training import ranks

    ended: typer.Exit | None = None
    with ranks.joined():
        output.quiet(ranks.rank() > 0)
        try:
            yield
        except typer.Exit as verdict:  # in good order, so that the group is left as at any other end
            ended = verdict
        except RankLostError:
            if _OURS in os.environ:
                raise typer.Exit(_LOST) from None
            output.quiet(not ranks.first_to_fail())
            raise
        except Exception:
            output.quiet(not ranks.first_to_fail())
            raise
    if ended:
        raise ended
