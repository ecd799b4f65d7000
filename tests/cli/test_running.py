"""Training so that nothing is lost: what is kept, when, and what is taken up again."""

from __future__ import annotations

import copy
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.checkpoints import resume
from bcu_cli.checkpoints.resume import StateFile
from bcu_cli.errors import CheckpointError, OutputError, TrainingError
from bcu_cli.runs import resuming
from bcu_cli.training.devices import choose
from bcu_cli.training.loop import Stage, Training
from bcu_cli.training.options import TrainingOptions
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("on_screen")

EPOCHS = 3


def stage(title: str = "first", *, width: int = 4, momentum: float = 0.9) -> Stage:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.LazyLinear(2))
    images = torch.randint(0, 256, (16, 3, 6, 6), dtype=torch.uint8)
    network(images.float())

    def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:
        return F.cross_entropy(network(views), index % 2)

    options = TrainingOptions(epochs=EPOCHS, batch_size=8, ema=0.9, momentum=momentum, nesterov=False)
    training = Training(network, images, objective, options, device=choose("cpu", "fp32"), seed=0)
    return Stage(title=title, training=training)


def weights(stages: list[Stage]) -> Tensor:
    return torch.cat([p.flatten() for each in stages for p in each.training.model.state_dict().values()])


@pytest.fixture
def keeper(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "out", "this run")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(resume, "COSTS_BETWEEN", 0.0)


def test_a_run_that_is_done_keeps_its_state_until_the_output_is_written(keeper: StateFile) -> None:
    whole = weights(resuming.train([stage(), stage("second")], keeper, resume=False))
    assert keeper.path.exists()
    again = resuming.train([stage(), stage("second")], keeper, resume=True)
    assert torch.equal(weights(again), whole)
    assert [each.training.throughput().images for each in again] == [0, 0]  # nothing was trained again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_after_the_last_step_keeps_the_state(
    keeper: StateFile, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    def stages() -> Iterator[Stage]:
        yield stage()
        os.kill(os.getpid(), number)

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt):
        resuming.train(stages(), keeper, resume=False)
    assert "stopped after the last step; --resume continues from there" in capfd.readouterr().err
    assert keeper.path.exists()
    after = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before


def test_a_full_disk_is_said_once_and_the_run_goes_on(
    keeper: StateFile, often: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def refuse(path: Path) -> None:
        tried.append(path)
        raise OutputError(f"{path} cannot be written: no space left on device", "free some space")

    whole = weights(resuming.train([stage()], keeper, resume=False))
    old = keeper.path.read_bytes()
    monkeypatch.setattr(resume, "atomic_write", refuse)
    assert torch.equal(weights(resuming.train([stage()], keeper, resume=False)), whole)
    assert len(tried) > 2
    assert capfd.readouterr().err.count("warning: the state of this run is not kept") == 1
    assert keeper.path.read_bytes() == old


def test_a_stop_whose_state_finds_no_room_says_so(
    keeper: StateFile, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise OutputError(f"{path} cannot be written: no space left on device", "free some space")

    monkeypatch.setattr(resume, "atomic_write", refuse)
    stopping = stage()
    step = stopping.training._timed_step

    def step_and_stop(index: Tensor) -> None:
        step(index)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(stopping.training, "_timed_step", step_and_stop)
    with pytest.raises(KeyboardInterrupt):
        resuming.train([stopping], keeper, resume=False)
    err = capfd.readouterr().err
    assert "stopped after step 1 of 6 of first; its state could not be kept" in err
    assert "--resume" not in err


def change(*path: Any, to: Any) -> Callable[[Any], None]:
    def act(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = to

    return act


FIELDS = {
    "no stages": lambda state: state.pop("stages"),
    "stages that are no list": change("stages", to={}),
    "a stage that is none": change("stages", 0, to=[1]),
    "another title": change("stages", 0, "title", to="second"),
    "a field too many": change("stages", 0, "training", "more", to=1),
    "a step that is a text": change("stages", 0, "training", "step", to="3"),
    "a step that is a fraction": change("stages", 0, "training", "step", to=2.0),
    "a step below 0": change("stages", 0, "training", "step", to=-1),
    "a step behind the end": change("stages", 0, "training", "step", to=10**20),
    "a loss of another type": change("stages", 0, "training", "loss", to=torch.zeros((), dtype=torch.int64)),
    "a loss that is a number": change("stages", 0, "training", "loss", to=0.0),
    "no networks": change("stages", 0, "training", "learners", to=[]),
    "a network without its optimizer": change("stages", 0, "training", "learners", 0, to=({},)),
    "a network of other names": change("stages", 0, "training", "learners", 0, to=({}, {})),
    "an average that is a list": change("stages", 0, "training", "average", to=[1]),
    "an average of other names": change("stages", 0, "training", "average", to={"a": torch.ones(1)}),
    "another scaler": change("stages", 0, "training", "scaler", to={"scale": 1.0}),
    "a weight of another shape": lambda state: learner(state)[0].update({"0.bias": torch.ones(5)}),
    "a weight of another type": lambda state: learner(state)[0].update({"0.bias": torch.ones(4).double()}),
    "a weight that is a number": lambda state: learner(state)[0].update({"0.bias": 1.0}),
    "groups that are none": lambda state: learner(state)[1].update({"param_groups": [1]}),
    "a learning rate that is no number": lambda state: group(state).update({"lr": "fast"}),
    "a learning rate that is not finite": lambda state: group(state).update({"lr": float("nan")}),
    "other parameters": lambda state: group(state).update({"params": [7]}),
    "momentum of no parameter": lambda state: learner(state)[1].update({"state": {99: {}}}),
    "momentum that is a list": lambda state: learner(state)[1].update({"state": {0: [1]}}),
    "momentum of another shape": lambda state: learner(state)[1].update(
        {"state": {0: {"momentum_buffer": torch.ones(7)}}}
    ),
    "momentum that is a text": lambda state: learner(state)[1].update({"state": {0: {"buffer": "x"}}}),
}


def learner(state: Any) -> Any:
    return state["stages"][0]["training"]["learners"][0]


def group(state: Any) -> Any:
    return learner(state)[1]["param_groups"][0]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The state after two steps, as it was read."""
    keeper = StateFile(tmp_path_factory.mktemp("kept") / "out", "this run")

    def stop_after_two(stages: list[Stage], keeper: StateFile, stop: Any, asked: Any) -> None:
        if stages[-1].training.done == 2:
            resuming._save(stages, keeper)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resuming, "_save_if_due", stop_after_two)
        resuming.train([stage()], keeper, resume=False)
    return keeper.load()


def test_a_kept_state_goes_on_to_the_same_end(kept: Any, keeper: StateFile) -> None:
    whole = weights(resuming.train([stage()], keeper, resume=False))
    keeper.save(kept)
    assert torch.equal(weights(resuming.train([stage()], keeper, resume=True)), whole)


@pytest.mark.parametrize("name", FIELDS)
def test_a_state_with_a_field_of_another_kind_is_refused(kept: Any, keeper: StateFile, name: str) -> None:
    state = copy.deepcopy(kept)
    FIELDS[name](state)
    keeper.save(state)
    with pytest.raises(CheckpointError, match="does not fit this run: ") as error:
        resuming.train([stage()], keeper, resume=True)
    assert str(keeper.path) in error.value.message
    assert "--resume" in error.value.hint


def test_a_state_of_another_network_is_refused(kept: Any, keeper: StateFile) -> None:
    keeper.save(kept)
    with pytest.raises(CheckpointError, match="does not fit this run: of first, its average"):
        resuming.train([stage(width=5)], keeper, resume=True)


def test_stages_are_matched_by_their_titles(keeper: StateFile, capfd: pytest.CaptureFixture[str]) -> None:
    titles = ["first", "level 1", "level 2", "last"]
    resuming.train([stage(title) for title in titles], keeper, resume=False)
    other = resuming.train([stage(title) for title in ("first", "level 1", "last")], keeper, resume=True)
    assert [each.training.throughput().images for each in other] == [0, 0, 0]
    more = [stage(title) for title in ("first", "level 1", "new", "last")]
    assert [each.training.throughput().images > 0 for each in resuming.train(more, keeper, resume=True)] == [
        *(False, False),
        *(True, False),
    ]
    resuming.train([stage("first"), stage("same"), stage("same")], keeper, resume=False)
    twice = resuming.train([stage("first"), stage("same"), stage("same")], keeper, resume=True)
    assert [each.training.throughput().images for each in twice] == [0, 0, 0]


FULL = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_memory_that_ends_in_a_constructor_keeps_what_is_done(keeper: StateFile, error: Exception) -> None:
    def stages(*done: Stage) -> Iterator[Stage]:
        yield from done
        raise error

    with pytest.raises(TrainingError, match="not enough memory for the first stage"):
        resuming.train(stages(), keeper, resume=False)
    assert not keeper.path.exists()
    with pytest.raises(TrainingError, match="memory for the stage after first; --resume continues"):
        resuming.train(stages(stage()), keeper, resume=False)
    done = resuming.train([stage(), stage("second")], keeper, resume=True)
    assert [each.training.throughput().images > 0 for each in done] == [False, True]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_memory_that_ends_anywhere_has_a_message(
    bcu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(loading, "load_model", fail)
    ran = bcu("cleanse", tmp_path / "m.pth", "--out", tmp_path / "out", "--method", "clp")
    assert (ran.code, "there is not enough memory" in ran.error) == (2, True)
