"""What the commands do alike: read a model, load pictures with a bar, train so that nothing is lost."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bcu_cli import limits
from bcu_cli.checkpoints.resume import START_ANEW
from bcu_cli.cli import output, signals
from bcu_cli.cli.locked import locked_output
from bcu_cli.cli.options import numbers
from bcu_cli.errors import CheckpointError, ImagesError, OutputError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from torch import Tensor

    from bcu_cli.checkpoints import Checkpoint
    from bcu_cli.checkpoints.resume import StateFile
    from bcu_cli.images.decoding import Geometry
    from bcu_cli.images.folder import ImageSet, Part
    from bcu_cli.images.listing import Listing
    from bcu_cli.models import Loaded, Preprocessing
    from bcu_cli.training.devices import Device
    from bcu_cli.training.loop import Epoch, Stage
    from bcu_cli.training.ranks import Anyone


T = TypeVar("T")

_LONGEST_REASON = 200
_SECONDS_OF_ONE_SIGNAL = 1.0
"""A cluster sends a signal to all processes, and torchrun passes on its own: that is one, and not two."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the user says of a model; None is to be found out."""

    arch: str | None
    input_size: int | None
    mean: str | None
    std: str | None
    weights_key: str | None = None


def load_model(
    path: Path, options: ModelOptions, *, pictures: Path | str | None, download: bool = False
) -> Loaded:
    """Read a model file and make it a classifier; what was noticed on the way is said.

    Args:
        path: The file.
        options: What the user says.
        pictures: A folder, or as a text what ``--data`` names: some of its pictures may decide what the file
            does not say, by BatchNorm statistics. None where there are none.
        download: Whether ``--download`` was given.

    Raises:
        BcuError: It cannot be read, is not safe, or is no classifier that can be rebuilt.
    """
    from bcu_cli.models import load

    checkpoint = _read(path, options.weights_key)
    for finding in checkpoint.findings:
        output.warn(f"{path}: {finding.message}")
    with _sampler(pictures, download=download) as take:
        loaded = load(
            checkpoint,
            arch=options.arch,
            input_size=options.input_size,
            mean=numbers(options.mean, "--mean"),
            std=numbers(options.std, "--std"),
            images=take and (lambda preprocessing: take(geometry_of(preprocessing))),
        )
    output.say(f"{path.name}: {'; '.join(loaded.evidence)}")
    _say_choice(checkpoint)
    return loaded


def _say_choice(checkpoint: Checkpoint) -> None:
    """Say which of several weights were taken, and how to take the others."""
    if checkpoint.others:
        taken = "/".join(checkpoint.nesting) or "its outermost table"
        others = " or ".join(f"--weights-key {name or repr('')}" for name in checkpoint.others)
        output.warn(
            f"{checkpoint.path.name} holds several weights: {taken} is taken ({checkpoint.choice}); "
            f"{others} takes others"
        )


def _read(path: Path, weights_key: str | None) -> Checkpoint:
    """Read a model file with limits on memory and time.

    Raises:
        CheckpointError: It cannot be read, is not safe, or takes more than a file of its size should.
    """
    from bcu_cli.checkpoints import read
    from bcu_cli.checkpoints.reading import model_in
    from bcu_cli.checkpoints.shards import size_with_parts

    file = model_in(path)
    try:
        with limits.reading(file, size_with_parts(file)):
            return read(file, weights_key=weights_key)
    except (CheckpointError, MemoryError, RuntimeError) as error:
        if not limits.is_lack_of_memory(error):
            raise
        message = f"{path} takes more memory to read than a file of its size should, or than there is"
        hint = "nothing is known of it; if the machine has little memory left, use a larger one"
        raise CheckpointError(message, hint, rule="reader-out-of-memory") from error


@contextmanager
def _sampler(pictures: Path | str | None, *, download: bool) -> Iterator[Callable[[Geometry], Tensor] | None]:
    """What takes some pictures in a wanted shape; a zip file is unpacked once, and only if it is called."""
    if pictures is None:
        yield None
        return
    from bcu_cli.images.folder import sample
    from bcu_cli.images.listing import list_pictures
    from bcu_cli.images.sources import open_source

    with ExitStack() as stack:

        @cache
        def part() -> Part:
            return stack.enter_context(open_source(str(pictures), download=download)).test()

        @cache
        def listing(root: Path) -> Listing:
            return list_pictures(root)

        def take(geometry: Geometry) -> Tensor:
            if isinstance(pictures, Path):
                return sample(listing(pictures), geometry)
            return part().sample(geometry)

        yield take


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
        output.say("stopping; once more to stop without keeping the state")

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


def files_of_model(path: Path, arch: str | None = None) -> list[Path]:
    """What may be read to make a model file a classifier, whether it is there or not.

    Raises:
        CheckpointError: It is an index that makes no sense.
    """
    from bcu_cli.checkpoints.shards import INDEX_SUFFIX, read_index

    parts = read_index(path) if path.name.endswith(INDEX_SUFFIX) else ()
    return [path, *parts, *files_of_config(path, arch)]


def files_of_config(path: Path, arch: str | None = None) -> list[Path]:
    """What may be read beside a model file to tell its network, whether it is there or not."""
    beside = [path.with_name(name) for name in ("config.json", "preprocessor_config.json")]
    return [*beside, *([Path(arch.rpartition(":")[0])] if arch and ":" in arch else [])]


def files_read_of(model: dict[str, Any], arch: str | None = None) -> list[Path]:
    """What was read to make a model of a report a classifier, whether it is there or not."""
    return [*files_of_model(Path(model["path"]), arch), *map(Path, model["parts"])]


def places_of_data(spec: str) -> list[Path]:
    """What ``--data`` may name: a folder, an archive, or behind a colon the folder of a published set."""
    return [Path(spec), *([Path(place)] if (place := spec.partition(":")[2]) else [])]


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
        output.say(f"there is no {keeper.path} to resume from; starting anew")
    elif not resume and keeper.path.exists():
        output.say(f"{keeper.path} is there from an interrupted run; --resume would have gone on with it")

    states = {} if kept is None else _states(kept, keeper)
    done: list[Stage] = []
    asked = ranks.Anyone()
    with stoppable() as stop:
        try:
            for stage in stages:
                if kept_stage := states.get(stage.title):
                    _restore(stage, kept_stage.pop(0), keeper)
                    output.say(f"going on after step {stage.training.done} of {stage.training.steps}")
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
                output.say(f"stopped after the last step; {kept_in_words}")
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
        output.warn(f"{what} failed, after the result was written: {why[:_LONGEST_REASON]}")
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
    return CheckpointError(f"{keeper.path} does not fit this run: {why}", START_ANEW)


def _save(stages: list[Stage], keeper: StateFile) -> str:
    """Keep the state; where that fails the run goes on, which is said once. Returns what --resume can do."""
    warned = keeper.failed
    try:
        keeper.save(_state(stages))
    except OutputError as error:
        if not warned:
            output.warn(f"the state of this run is not kept: {error.message} ({error.hint}); it goes on")
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
    with output.bar(stage.title) as bar:
        bar.advance(training.done, training.steps)

        def after_step() -> None:
            bar.advance(1, training.steps)
            keep()

        def after_epoch(epoch: Epoch) -> None:
            bar.advance(0, training.steps, f"loss {epoch.loss:.4f} {on_epoch(epoch)}")

        try:
            training.run(on_step=after_step, on_epoch=after_epoch)
        except Interrupted as stop:
            steps = f"step {training.done} of {training.steps} of {stage.title}"
            output.say(f"stopped after {steps}; {stop}")
            raise KeyboardInterrupt from None


def geometry(shape: tuple[int, int, int]) -> Geometry:
    """The shape (C, H, W) that pictures are brought to, nothing cut off but what does not fit."""
    from bcu_cli.images.decoding import Geometry

    channels, height, width = shape
    return Geometry(channels=channels, height=height, width=width)


def geometry_of(preprocessing: Preprocessing) -> Geometry:
    """The shape that pictures are brought to for a model."""
    return replace(
        geometry(preprocessing.input_size),
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        interpolation=preprocessing.interpolation,
    )


def load_to_train(
    spec: str, shape: tuple[int, int, int], *, seed: int, download: bool = False
) -> tuple[ImageSet, ImageSet]:
    """Labelled pictures to train on, and others to measure on: the test part, or a tenth held out.

    Args:
        spec: What ``--data`` names.
        shape: The shape (C, H, W) that they are brought to.
        seed: Decides which are held out.
        download: Whether ``--download`` was given.

    Raises:
        ImagesError: There are none, not of two classes or more, or none of some class.
    """
    import torch

    from bcu_cli.images.folder import FEWEST_IMAGES, hold_out
    from bcu_cli.images.sources import open_source

    size = geometry(shape)
    with open_source(spec, download=download) as source:
        part = source.train()
        rest = source.test() if source.divided else None  # found before the long work on the first begins
        if rest and rest.hidden is part.hidden:  # of one archive: said once
            rest = replace(rest, hidden=type(rest.hidden)())
        data = with_bar(lambda bar: part.load(size, every_class=True, on_progress=bar), part.root)
        if rest:
            names = data.classes
            return data, with_bar(lambda bar: rest.load(size, classes=names, on_progress=bar), rest.root)
    if len(data) < FEWEST_IMAGES:
        raise ImagesError(
            f"{data.root} holds {len(data)} readable pictures; at least {FEWEST_IMAGES} are needed",
            "a tenth of them is held out to measure on; add some to each class",
        )
    return hold_out(data, 0.1, most=10_000, generator=torch.Generator().manual_seed(seed))


def load_to_measure(
    spec: str, geometry: Geometry, classes: tuple[str, ...], *, download: bool = False
) -> ImageSet:
    """Labelled pictures to measure on: the test part, or all of them where they are not divided.

    Args:
        spec: What ``--data`` names.
        geometry: What each picture becomes.
        classes: Names of the classes in label order, where the model says them.
        download: Whether ``--download`` was given.

    Raises:
        ImagesError: There are none, or some of a class that the model does not have.
    """
    from bcu_cli.images.sources import open_source

    with open_source(spec, download=download) as source:
        part = source.test()
        return with_bar(lambda bar: part.load(geometry, classes=classes, on_progress=bar), part.root)


def load_labels_of(part: Part, loaded: Loaded) -> ImageSet:
    """Decode labelled pictures as a model takes them: of classes that it names, or of as many as it has.

    Raises:
        ImagesError: There are none, or they are not of the model's classes.
    """
    from bcu_cli.models.metadata import class_names

    size, count = geometry_of(loaded.classifier.preprocessing), loaded.classifier.num_classes
    names = class_names(loaded.checkpoint.metadata, count)
    data = with_bar(lambda bar: part.load(size, classes=names, on_progress=bar), part.root)
    refuse_other_classes(data, count)
    return data


def refuse_other_classes(data: ImageSet, count: int) -> None:
    """Refuse labelled pictures that are not of ``count`` classes, which are the model's.

    Raises:
        ImagesError: They are of more or fewer.
    """
    if len(data.classes) != count:
        raise ImagesError(
            f"{data.root} has {len(data.classes)} classes, the model has {count} classes",
            "which is which cannot be told; keep a subfolder for every class, empty ones too",
        )


def say_scaled(folder: Path, scaled: Iterable[tuple[Path, str]]) -> None:
    """Say how values of more than 8 bits were scaled, each way once with the first such file."""
    for path, how in scaled:
        output.say(f"of more than 8 bits in {folder}, first {path}: {how}")


def with_bar(load: Callable[[Callable[[int, int], None]], ImageSet], folder: Path) -> ImageSet:
    """Load pictures with a bar, and say which files are none and what was left out.

    Args:
        load: Loads them, given what to call with (files since the last call, files in all).
        folder: Where from; for the messages.
    """
    with output.bar(f"reading {folder}") as bar:
        data = load(bar.advance)
    if data.skipped:
        path, reason = data.skipped[0]
        output.warn(f"{len(data.skipped)} files in {folder} are no readable pictures, first {path}: {reason}")
    if first := data.hidden.first:
        output.say(f"hidden in {folder}, and left out: {data.hidden.number}, first {first}")
    say_scaled(folder, data.scaled)
    return data
