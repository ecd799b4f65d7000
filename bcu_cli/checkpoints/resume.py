"""The state of an interrupted run, in a file beside the output that it was to write."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.checkpoints.writing import atomic_write
from bcu_cli.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECONDS_BETWEEN = 30.0


class StateFile:
    """Keeps the state of one run.

    Args:
        output: The file that the run is to write; the state lies beside it as ``NAME.resume``.
        fingerprint: What decides the run: a state with another one is of another run.
        writes: Whether it is this process that keeps it; where several train together only one does.
    """

    def __init__(self, output: Path, fingerprint: str, *, writes: bool = True) -> None:
        self.path = output.with_name(output.name + ".resume")
        self._fingerprint = fingerprint
        self._writes = writes
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state that an earlier run left, or None.

        Raises:
            CheckpointError: The file is damaged.
            UsageError: It belongs to a run with other options, files or seed.
        """
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            found = state["fingerprint"]
        except (
            OSError,
            RuntimeError,
            EOFError,
            KeyError,
            TypeError,
            ValueError,
            pickle.UnpicklingError,
        ) as error:
            raise CheckpointError(
                f"{self.path} is damaged and cannot be resumed from", "remove it and start without --resume"
            ) from error
        if found != self._fingerprint:
            raise UsageError(
                f"{self.path} was left by a run with other options, images, model or version of bcu",
                "repeat that run's options, or start anew without --resume",
            )
        loaded: dict[str, Any] = state["state"]
        return loaded

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, in place of the last one."""
        if not self._writes:
            return
        with atomic_write(self.path) as temporary:
            torch.save({"fingerprint": self._fingerprint, "state": state}, temporary)
        self._saved_at = time.monotonic()

    def save_now_and_then(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write the state where the last time is ``SECONDS_BETWEEN`` ago, against a sudden end."""
        if self._writes and time.monotonic() - self._saved_at >= SECONDS_BETWEEN:
            self.save(state())

    def remove(self) -> None:
        """The run is over: nothing is left to resume."""
        if self._writes:
            self.path.unlink(missing_ok=True)
