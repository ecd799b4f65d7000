"""Training that can be stopped and resumed: the state is kept, whatever ends the run."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from bcu_cli import events, limits
from bcu_cli.checkpoints.resume import START_OVER
from bcu_cli.errors import CheckpointError, OutputError, TrainingError
from bcu_cli.runs import signals
from bcu_cli.runs.locks import locked_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import FrameType

    from bcu_cli.checkpoints.resume import StateFile
    from bcu_cli.training.devices import Device
    from bcu_cli.training.loop import Epoch, Stage
    from bcu_cli.training.ranks import Anyone


T = TypeVar("T")

_LONGEST_REASON = 200
_SECONDS_OF_ONE_SIGNAL = 1.0
"""A cluster sends a signal to all processes, and torchrun passes on its own: that is one, and not two."""


class Stop:
    """Whether the user asked the run to stop."""

    requested = False
    at = 0.0
    """When, by the clock that only goes on."""


@contextmanager
def stoppable() -> Iterator[Stop]:
    """A signal asks for a stop between two steps; a second one stops at once."""
    from bcu_cli.training import ranks

    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if stop.requested and ranks.count() > 1 and now - stop.at < _SECONDS_OF_ONE_SIGNAL:
            return
        if stop.requested:
            signals.interrupt(number, frame)
        stop.requested, stop.at = True, now
        events.say("stopping; once more to stop without keeping the state")

    before = signals.handle(handle)
    try:
        with limits.keeping_state():
            yield stop
    finally:
        signals.restore(before)


@contextmanager
def writing(out: Path, *, inputs: Iterable[Path]) -> Iterator[None]:
    """Check before long work that a model and its state can be written, and keep other runs away from it.

    Args:
        out: The model's file.
        inputs: What is read, which ``out`` must not be.

    Raises:
        OutputError: It is an input, or cannot be written, or another file lies where its state would.
        UsageError: Another run is to write it.
    """
    from bcu_cli.checkpoints import check_writable
    from bcu_cli.checkpoints.resume import path_of, refuse_foreign
    from bcu_cli.training import ranks

    check_writable(out, inputs=inputs)
    refuse_foreign(path_of(out))
    with locked_output(out) if ranks.rank() == 0 else nullcontext():
        yield


def train(
    stages: Iterable[Stage],
    keeper: StateFile,
    *,
    resume: bool,
    on_epoch: Callable[[Epoch], str] = lambda _: "",
) -> list[Stage]:
    """Run trainings one after another with a bar, keeping the state where they are interrupted.

    Args:
        stages: What to run; each is asked for when those before it are done.
        keeper: Where the state is kept, also when all is done; removed by the caller once the output is
            written.
        resume: Whether to go on from a state that is there.
        on_epoch: Called after each epoch; what it returns stands behind the bar.

    Returns:
        The stages, done.

    Raises:
        KeyboardInterrupt: The run was stopped, and its state kept.
        TrainingError: Memory ran out between two stages; those that are done are kept.
        BcuError: The state that is to be resumed from is damaged, or of another run.
    """
    from bcu_cli.errors import RankLostError
    from bcu_cli.training import ranks
    from bcu_cli.training.devices import is_out_of_memory

    kept = ranks.same(keeper.load() if resume and ranks.rank() == 0 else None)
    if resume and kept is None:
        events.say(f"there is no {keeper.path} to resume from; starting anew")
    elif not resume and keeper.path.exists():
        events.say(f"{keeper.path} is there from an interrupted run; --resume would have gone on with it")

    states = {} if kept is None else _states(kept, keeper)
    done: list[Stage] = []
    asked = ranks.Anyone()
    with stoppable() as stop:
        try:
            for stage in stages:
                if kept_stage := states.get(stage.title):
                    _restore(stage, kept_stage.pop(0), keeper)
                    events.say(f"going on after step {stage.training.done} of {stage.training.steps}")
                elif states and not done:
                    raise _unfit(keeper, f"it does not begin with {stage.title}")
                done.append(stage)
                _run_stage(stage, partial(_keep, done, keeper, stop, asked), on_epoch)
        except RankLostError:
            _save(done, keeper)
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            what = f"the stage after {done[-1].title}; {_save(done, keeper)}" if done else "the first stage"
            hint = "use another --device, close other programs, or start anew with fewer images"
            raise TrainingError(f"there is not enough memory for {what}", hint) from error
        if done:
            kept_in_words = _save(done, keeper)
            if asked.says(stop.requested) | asked.says(False):  # several processes hear of it a call later
                events.say(f"stopped after the last step; {kept_in_words}")
                raise KeyboardInterrupt
    return done


def speed_of(stages: list[Stage], device: Device) -> list[dict[str, Any]]:
    """How fast each stage ran, measured once the result is written; nothing where that fails."""
    from bcu_cli.report import document

    if not stages:
        return []
    return once_written("the speed", lambda: document.training(stages, device), [])


def once_written(what: str, act: Callable[[], T], otherwise: T) -> T:
    """Do what comes after the result was written; where that fails, a warning says so, and the run is over.

    Args:
        what: What is done or measured, for people.
        act: Does it.
        otherwise: Stands for what it returns where it fails.
    """
    from bcu_cli.training.devices import is_out_of_memory

    try:
        return act()
    except Exception as error:  # the result is there: nothing that comes after it can undo that
        why = (
            "out of memory"
            if is_out_of_memory(error)
            else " ".join(str(error).split()) or type(error).__name__
        )
        events.warn(f"{what} failed, after the result was written: {why[:_LONGEST_REASON]}")
        return otherwise


def _state(stages: list[Stage]) -> dict[str, Any]:
    return {"stages": [{"title": stage.title, "training": stage.training.state()} for stage in stages]}


def _states(kept: dict[str, Any], keeper: StateFile) -> dict[str, list[Any]]:
    """The kept trainings by their titles, which tell them apart where a measurement has now led elsewhere."""
    stages = kept.get("stages")
    if not isinstance(stages, list):
        raise _unfit(keeper, "it lists no stages")
    states: dict[str, list[Any]] = {}
    for state in stages:
        if not isinstance(state, dict) or state.keys() != {"title", "training"}:
            raise _unfit(keeper, "a stage in it is none")
        states.setdefault(str(state["title"]), []).append(state["training"])
    return states


def _restore(stage: Stage, state: Any, keeper: StateFile) -> None:
    """Take up one training where a kept one of the same title stopped.

    Raises:
        CheckpointError: It was another one.
    """
    try:
        stage.training.restore(state)
    except ValueError as error:
        raise _unfit(keeper, f"of {stage.title}, {error}") from error


def _unfit(keeper: StateFile, why: str) -> CheckpointError:
    return CheckpointError(f"{keeper.path} does not fit this run: {why}", START_OVER)


def _save(stages: list[Stage], keeper: StateFile) -> str:
    """Keep the state; where that fails the run goes on, which is said once. Returns what --resume can do."""
    warned = keeper.failed
    try:
        keeper.save(_state(stages))
    except OutputError as error:
        if not warned:
            events.warn(f"the state of this run is not kept: {error.message} ({error.hint}); it goes on")
        return "its state could not be kept"
    return "--resume goes on from there"


def _keep(stages: list[Stage], keeper: StateFile, stop: Stop, asked: Anyone) -> None:
    """Keep the state now and then, and where the user asked for a stop; which all processes make together."""
    from bcu_cli.training.loop import Interrupted

    if asked.says(stop.requested):
        raise Interrupted(_save(stages, keeper))
    if keeper.is_due():
        _save(stages, keeper)


def _run_stage(stage: Stage, keep: Callable[[], None], on_epoch: Callable[[Epoch], str]) -> None:
    """Run one training with a bar; ``keep`` is called after each step."""
    from bcu_cli.training.loop import Interrupted

    training = stage.training
    with events.progress(stage.title) as part:
        part.advance(training.done, training.steps)

        def after_step() -> None:
            part.advance(1, training.steps)
            keep()

        def after_epoch(epoch: Epoch) -> None:
            part.advance(0, training.steps, f"loss {epoch.loss:.4f} {on_epoch(epoch)}")

        try:
            training.run(on_step=after_step, on_epoch=after_epoch)
        except Interrupted as stop:
            steps = f"step {training.done} of {training.steps} of {stage.title}"
            events.say(f"stopped after {steps}; {stop}")
            raise KeyboardInterrupt from None
