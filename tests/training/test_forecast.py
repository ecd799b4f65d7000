"""The time that a run will take: what is said of it, once, and what the bar shows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bcu_cli import detectors, events
from bcu_cli.cli.output import Screen
from bcu_cli.detectors.base import Subject
from bcu_cli.detectors.running import outlook
from bcu_cli.models.new_classifier import new_classifier
from bcu_cli.training.devices import Device
from bcu_cli.training.forecast import Forecast, Outlook, PlannedStage, place

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGES = (
    PlannedStage(title="search", passes=100.0, after=50.0),
    PlannedStage(title="level 1", passes=800.0),
    PlannedStage(title="level 2", passes=800.0, sure=False),
    PlannedStage(title="verification", passes=50.0),
)
"""1000 passes that are sure, and 800 that are not."""


class Run:
    """A forecast with a clock of its own, and what it says."""

    def __init__(self, outlook: Outlook) -> None:
        self.now = 0.0
        self.forecast = Forecast(outlook, "this CPU", lambda: self.now)
        self.said: list[events.Notice] = []

    def steps(self, count: int, seconds: float, of: int, first: int = 0) -> None:
        """Some steps of a stage of ``of`` steps, each of which takes so many seconds."""
        with events.listening(lambda event: self.said.append(event)):  # type: ignore[arg-type]
            for step in range(first, first + count):
                self.now += seconds
                self.forecast.advance((step + 1) / of)

    @property
    def left(self) -> float | None:
        return self.forecast.overall().seconds_left


def test_the_whole_time_follows_from_a_few_steps_and_is_said_once() -> None:
    run = Run(Outlook(stages=STAGES, shorter={"--quick": 100.0}))
    run.forecast.begin("search")
    run.steps(3, 2.0, of=100)  # the first warms up; two are timed
    assert (run.left, run.said) == (None, [])
    run.steps(10, 2.0, of=100, first=3)
    assert run.left == pytest.approx(2.0 * 987)
    (notice,) = run.said
    assert "on this CPU; about" in notice.text
    assert notice.text.endswith("with --quick")
    assert not notice.is_warning


def test_the_time_left_is_that_of_all_stages() -> None:
    run = Run(Outlook(stages=STAGES))
    run.forecast.begin("search")
    run.steps(100, 2.0, of=100)
    assert run.left == pytest.approx(2.0 * 900)
    run.now += 100.0  # what follows the stage counts as its 50 passes
    run.forecast.begin("level 1")
    run.steps(400, 4.0, of=800)
    assert run.left == pytest.approx(2.0 * 450 * (1 + (400 * 2.0) / (2 * 549)), rel=0.01)
    overall = run.forecast.overall()
    assert (overall.stage, overall.stages) == (2, 3)
    assert overall.share == pytest.approx(0.55)


def test_a_stage_that_was_not_sure_counts_once_it_begins() -> None:
    run = Run(Outlook(stages=STAGES))
    seen = []
    for title in ("search", "level 1", "level 2", "verification"):
        run.forecast.begin(title)
        seen.append((run.forecast.overall().stage, run.forecast.overall().stages))
        run.forecast.advance(1.0)
    assert seen == [(1, 3), (2, 3), (3, 4), (4, 4)]
    assert run.forecast.overall().share == 1.0


def test_a_stage_that_is_left_out_or_not_listed_does_not_matter() -> None:
    run = Run(Outlook(stages=STAGES))
    run.forecast.begin("verification")
    assert (run.forecast.overall().stage, run.forecast.overall().stages) == (1, 1)
    run.forecast.begin("something else")
    assert run.forecast.overall().stages == 2


def test_a_resumed_stage_is_not_taken_for_fast() -> None:
    run = Run(Outlook(stages=STAGES))
    run.forecast.begin("search", 1.0)
    run.forecast.begin("level 1", 0.5)
    for step in range(10):
        run.now += 2.0
        run.forecast.advance(0.5 + (step + 1) / 800)
    assert run.left == pytest.approx(2.0 * (1000 - 560))


@pytest.mark.parametrize(("seconds", "said"), [(0.01, 0), (1.0, 1), (10.0, 1)])
def test_short_runs_say_nothing_and_long_ones_warn(seconds: float, said: int) -> None:
    run = Run(Outlook(stages=STAGES, advice="a GPU shortens it"))
    run.forecast.begin("search")
    run.steps(20, seconds, of=100)
    assert len(run.said) == said
    if seconds == 10.0:
        assert run.said[0].is_warning
        assert run.said[0].text.startswith("about 2.")
        assert run.said[0].text.endswith(" h on this CPU; a GPU shortens it")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 s"),
        (89.4, "89 s"),
        (90.0, "2 min"),
        (2900.0, "48 min"),
        (5399.0, "90 min"),
        (9000.0, "2.5 h"),
    ],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert events.duration(seconds) == words


def test_events_carry_the_figures_to_another_process_and_into_words() -> None:
    heard: list[Any] = []
    whole = events.Overall(stage=3, stages=7, share=0.5, seconds_left=720.0)
    with events.listening(heard.append), events.progress("looking", lambda: whole) as part:
        part.advance(3, 120, "loss 1")
    event = heard[1]
    assert events.from_json(events.to_json(event)) == event
    assert events.from_json(events.to_json(replace(event, overall=None))) == replace(event, overall=None)
    assert str(event) == "stage 3 of 7, looking: 3/120 loss 1"
    assert event.time_left == "12 min left"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    yield


def test_the_bar_shows_the_whole_run(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    whole = events.Overall(stage=3, stages=7, share=0.5, seconds_left=720.0)
    screen = Screen()
    event = events.Progress(part=1, title="looking", done=3, total=120, note="loss 1", overall=whole)
    screen(event)
    bar, _ = screen._bars[1]
    shown = bar.tasks[0]
    assert (shown.description, shown.percentage) == ("stage 3 of 7, looking", 50.0)
    assert shown.fields["note"] == "3/120 loss 1 12 min left"
    screen(replace(event, ended=True))
    assert not screen._bars


def test_a_scan_lists_the_detectors_that_it_runs() -> None:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    model = new_classifier("resnet8", 4, images, seed=0)
    subject = Subject(model=model, images=images, device=Device(torch=torch.device("cpu"), precision="fp32"))
    listed = outlook(subject)
    titles = [stage.title for stage in listed.stages]
    assert sorted(titles) == list(detectors.names())
    assert titles[:3] == ["last_layer", "lipschitz", "skew"]  # what the others may need
    assert {stage.title for stage in listed.stages if not stage.passes} <= {"last_layer", "lipschitz"}
    without = outlook(replace(subject, images=None))
    assert {stage.title for stage in without.stages} == {"last_layer", "lipschitz", "mmbd"}
    assert place(subject.device) == "this CPU"
