"""Commands on several devices, one process each, started by torch's launcher; one process prints."""

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
from bcu_cli.runs import signals
from bcu_cli.runs.children import with_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

P = ParamSpec("P")

_LAUNCHED = "BCU_LAUNCHED"
"""Environment variable that is set where :func:`launch` started this process and reports its end."""
_LOST = 3
"""Exit code of a process that ends because another one has ended, which reports the reason."""
SECONDS_TO_STOP = 120
"""Seconds that processes have to finish a step and save the state before they are killed."""


def started_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def as_rank(command: Callable[P, None]) -> Callable[P, None]:
    """Decorate a command to join the process group where torchrun has started it."""

    @wraps(command)
    def in_group(*args: P.args, **kwargs: P.kwargs) -> None:
        if not started_by_torchrun():
            return command(*args, **kwargs)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
        with _single_output():
            return command(*args, **kwargs)

    return in_group


def launch(words: Sequence[str], devices: int) -> int:
    """Run a command line of bcu in one process for each device, and return its exit code.

    Raises:
        TrainingError: A process was killed, or does not respond.
    """
    import logging
    from uuid import uuid4

    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from bcu_cli.images.decoding.processes import cores

    for name, value in with_threads(max(1, cores() // devices)).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))
    os.environ[_LAUNCHED] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # the host name may not resolve
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    logging.disable(logging.CRITICAL)  # the processes report their errors themselves
    try:
        with limits.keeping_state():  # waits while the processes save their state
            elastic_launch(config, sys.executable)("-m", "bcu_cli", *words)
    except SignalException:
        return _said(INTERRUPTED)
    except ChildFailedError as error:
        return _said(_outcome(error.failures, devices))
    finally:
        logging.disable(logging.NOTSET)
        del os.environ[_LAUNCHED]
    return 0


def _said(code: int) -> int:
    """The exit code; where the processes were interrupted, the first of them has said so."""
    if code == INTERRUPTED:
        signals.last_word_was_said()
    return code


def check(devices: int | None) -> None:
    """Refuse ``--devices`` if torchrun has started another number of processes.

    Raises:
        UsageError: The numbers differ.
    """
    from bcu_cli.training import ranks

    if devices not in {None, ranks.count()}:
        raise UsageError(
            f"torchrun has started {ranks.count()} processes, and --devices says {devices}",
            "leave --devices out",
        )


def _outcome(failures: Mapping[int, ProcessFailure], devices: int) -> int:
    """The exit code of a run in which processes have failed."""
    hint = "repeat the command with --resume to continue from the last saved state"
    for rank, failure in failures.items():
        if (
            failure.exitcode < 0 and failure.exitcode != -SIGTERM
        ):  # the launcher stops the others with SIGTERM
            number = -failure.exitcode
            raise TrainingError(
                f"process {rank} of {devices} was ended by signal {number} ({Signals(number).name})",
                f"{hint}; if memory ran out, use fewer --devices or a smaller --batch-size",
            )
    codes = [each.exitcode for each in failures.values() if each.exitcode not in {_LOST, -SIGTERM}]
    if not codes:
        raise TrainingError(f"one of the {devices} processes does not respond", hint)
    return min(codes, key=lambda code: code == INTERRUPTED)  # stopped processes return INTERRUPTED, too


@contextmanager
def _single_output() -> Iterator[None]:
    """Join the process group; only rank 0, or the first rank that fails, prints."""
    from bcu_cli.training import ranks

    ended: typer.Exit | None = None
    with ranks.joined():
        output.quiet(ranks.rank() > 0)
        try:
            yield
        except typer.Exit as verdict:  # leaves the group in the normal way
            ended = verdict
        except RankLostError:
            if _LAUNCHED in os.environ:
                raise typer.Exit(_LOST) from None
            output.quiet(not ranks.first_to_fail())
            raise
        except Exception:
            output.quiet(not ranks.first_to_fail())
            raise
    if ended:
        raise ended
