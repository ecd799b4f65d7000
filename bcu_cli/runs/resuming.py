"""Training that can be stopped and resumed, because its state is saved during the run and at its end."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

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
    from bcu_cli.training.forecast import Forecast, Outlook
    from bcu_cli.training.loop import Epoch, Stage
    from bcu_cli.training.ranks import Anyone


T = TypeVar("T")

_LONGEST_REASON = 200
_SECONDS_OF_ONE_SIGNAL = 1.0
"""Signals within this time count as one: a cluster signals all processes, and torchrun signals them too."""


class Stop:
    """Whether the user has asked the run to stop, and when.

    Attributes:
        requested: Whether a stop was requested.
        at: Time of the request, by ``time.monotonic``, in seconds.
    """

    requested = False
    at = 0.0


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Let a first signal request a stop after the current step, and a second one stop the run immediately."""
    from bcu_cli.training import ranks

    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if stop.requested and ranks.count() > 1 and now - stop.at < _SECONDS_OF_ONE_SIGNAL:
            return
        if stop.requested:
            signals.interrupt(number, frame)
        stop.requested, stop.at = True, now
        events.say("stopping; a second signal stops without saving the state")

    before = signals.handle(handle)
    try:
        with limits.keeping_state():
            yield stop
    finally:
        signals.restore(before)


@contextmanager
def writing(out: Path, *, inputs: Iterable[Path]) -> Iterator[None]:
    """Check before long work that a model and its state can be written, and lock the file against other runs.

    Args:
        out: The file of the model.
        inputs: Files and folders that are read; ``out`` must not be among them.

    Raises:
        OutputError: ``out`` is an input or cannot be written, or a foreign file is in the state's place.
        UsageError: Another run will write ``out``.
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
    state_file: StateFile,
    *,
    resume: bool,
    on_epoch: Callable[[Epoch], str] = lambda _: "",
    outlook: Outlook | None = None,
) -> list[Stage]:
    """Run the stages of a training in order, with progress bars, and save the state regularly.

    Args:
        stages: The stages; each is requested from the iterable when the stages before it are done.
        state_file: File of the state. It is also written when all stages are done; the caller removes it once
            the output is written.
        resume: Whether to resume from an existing state.
        on_epoch: Called after each epoch; returns a text to show beside the progress bar.
        outlook: The stages to come, for one bar and one estimate of them all; None knows each stage alone.

    Returns:
        The finished stages.

    Raises:
        KeyboardInterrupt: The run was stopped, and its state was saved.
        TrainingError: Memory ran out between two stages; the state of the finished stages was saved.
        BcuError: The state to resume from is damaged, or belongs to another run.
    """
    from bcu_cli.errors import RankLostError
    from bcu_cli.training import ranks
    from bcu_cli.training.devices import is_out_of_memory

    states = _load_states(state_file, resume=resume)
    done: list[Stage] = []
    asked = ranks.Anyone()
    with stoppable() as stop, _Bars(outlook) as bars:
        try:
            for stage in stages:
                if kept_stage := states.get(stage.title):
                    _restore(stage, kept_stage.pop(0), state_file)
                    steps = f"step {stage.training.done} of {stage.training.steps}"
                    events.say(f"resuming after {steps} of {stage.title}")
                elif states and not done:
                    raise _unfit(state_file, f"it does not begin with {stage.title}")
                done.append(stage)
                _run_stage(stage, bars, partial(_save_if_due, done, state_file, stop, asked), on_epoch)
        except RankLostError:
            _save(done, state_file)
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            what = (
                f"the stage after {done[-1].title}; {_save(done, state_file)}" if done else "the first stage"
            )
            hint = "use another --device, close other programs, or start over with fewer images"
            raise TrainingError(f"there is not enough memory for {what}", hint) from error
        if done:
            kept_in_words = _save(done, state_file)
            if asked.says(stop.requested) | asked.says(False):  # processes learn of a request one call later
                events.say(f"stopped after the last step; {kept_in_words}")
                raise KeyboardInterrupt
    return done


def speed_of(stages: list[Stage], device: Device) -> list[dict[str, Any]]:
    """The speed of each stage, for the report; an error only causes a warning and an empty list."""
    from bcu_cli.report import document

    if not stages:
        return []
    return once_written("the speed", lambda: document.training(stages, device), [])


def once_written(what: str, act: Callable[[], T], otherwise: T) -> T:
    """Run optional work after the result was written; an error in it causes only a warning.

    Args:
        what: Name of the work, for the warning.
        act: Does the work.
        otherwise: The value to return if ``act`` fails.
    """
    from bcu_cli.training.devices import is_out_of_memory

    try:
        return act()
    except Exception as error:  # the result is written, so no error may make the run fail
        why = (
            "out of memory"
            if is_out_of_memory(error)
            else " ".join(str(error).split()) or type(error).__name__
        )
        events.warn(f"{what} failed, after the result was written: {why[:_LONGEST_REASON]}")
        return otherwise


def _state(stages: list[Stage]) -> dict[str, Any]:
    return {"stages": [{"title": stage.title, "training": stage.training.state()} for stage in stages]}


def _load_states(state_file: StateFile, *, resume: bool) -> dict[str, list[Any]]:
    """The saved trainings by the titles of their stages; empty if the run starts from the beginning."""
    from bcu_cli.training import ranks

    kept = ranks.same(state_file.load() if resume and ranks.rank() == 0 else None)
    if resume and kept is None:
        events.say(f"there is no {state_file.path} to resume from; starting over")
    elif not resume and state_file.path.exists():
        events.say(
            f"starting over: {state_file.path} of an interrupted run will be replaced; "
            "to go on with it, end this run now and add --resume"
        )
    return {} if kept is None else _states(kept, state_file)


def _states(kept: dict[str, Any], state_file: StateFile) -> dict[str, list[Any]]:
    """The saved trainings, by the titles of their stages; this run may need only a part of them."""
    stages = kept.get("stages")
    if not isinstance(stages, list):
        raise _unfit(state_file, "it lists no stages")
    states: dict[str, list[Any]] = {}
    for state in stages:
        if not isinstance(state, dict) or state.keys() != {"title", "training"}:
            raise _unfit(state_file, "a stage in it is malformed")
        states.setdefault(str(state["title"]), []).append(state["training"])
    return states


def _restore(stage: Stage, state: Any, state_file: StateFile) -> None:
    """Restore one training from a saved one with the same title."""
    try:
        stage.training.restore(state)
    except ValueError as error:
        raise _unfit(state_file, f"of {stage.title}, {error}") from error


def _unfit(state_file: StateFile, why: str) -> CheckpointError:
    return CheckpointError(f"{state_file.path} does not fit this run: {why}", START_OVER)


def _save(stages: list[Stage], state_file: StateFile) -> str:
    """Save the state, and return a text that says whether --resume can use it.

    If the state cannot be saved, the run continues, and the first failure causes a warning.
    """
    warned = state_file.failed
    try:
        state_file.save(_state(stages))
    except OutputError as error:
        if not warned:
            events.warn(f"the state of this run is not kept: {error.message} ({error.hint}); it continues")
        return "its state could not be kept"
    return "--resume continues from there"


def _save_if_due(stages: list[Stage], state_file: StateFile, stop: Stop, asked: Anyone) -> None:
    """Save the state at regular intervals and when the user asks for a stop."""
    from bcu_cli.training.loop import Interrupted

    if asked.says(stop.requested):
        raise Interrupted(_save(stages, state_file))
    if state_file.is_due():
        _save(stages, state_file)


class _Bars:
    """The progress of the stages: one bar for all that an outlook lists, else one for each stage.

    Args:
        outlook: The stages to come; None where they are not known.
    """

    def __init__(self, outlook: Outlook | None) -> None:
        self._outlook = outlook
        self._forecast: Forecast | None = None
        self._part: events.Part | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._part:
            self._part.end()

    @contextmanager
    def of(self, stage: Stage) -> Iterator[tuple[events.Part, Forecast]]:
        """The bar and the forecast of one stage, while the context lasts."""
        from bcu_cli.training.forecast import Forecast, Outlook, PlannedStage, place

        training, device = stage.training, stage.training.device
        new = partial(Forecast, where=place(device), wait=device.wait)
        share = training.done / max(1, training.steps)
        if self._outlook is None:
            alone = new(Outlook(stages=(PlannedStage(title=stage.title, passes=training.steps),)))
            alone.begin(stage.title, share)
            with events.progress(stage.title) as part:
                yield part, alone
            return
        self._forecast = self._forecast or new(self._outlook)
        self._forecast.begin(stage.title, share)
        self._part = self._part or events.Part(stage.title, self._forecast.overall)
        self._part.restart("", stage.title)
        yield self._part, self._forecast


def _run_stage(stage: Stage, bars: _Bars, keep: Callable[[], None], on_epoch: Callable[[Epoch], str]) -> None:
    """Run one training with a progress bar, and call ``keep`` after each step."""
    from bcu_cli.training.loop import Interrupted

    training = stage.training
    with bars.of(stage) as (part, forecast):
        part.advance(training.done, training.steps)

        def after_step() -> None:
            forecast.advance(training.done / training.steps)
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
