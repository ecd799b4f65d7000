"""``bcu cleanse --method auto``, the default: its verdict, its output, its exit code, and what is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import lessen_effort
from safetensors.torch import load_file

from bcu_cli.checkpoints import Format, read, write
from bcu_cli.checkpoints.resume import StateFile
from bcu_cli.cli import cleanse_output
from bcu_cli.cli.cleanse_output import explain
from bcu_cli.defenses import auto
from bcu_cli.defenses.adversarial import evidence, mixing, patches
from bcu_cli.defenses.adversarial.evidence import Evidence
from bcu_cli.defenses.adversarial.residual_search import ResidualSearch, TriggerSuccess
from bcu_cli.defenses.base import Verdict
from bcu_cli.evaluation.measures import Proportion
from bcu_cli.images.sources import signs
from bcu_cli.models import load, metadata_for
from bcu_cli.runs import resuming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers import Ran

    Cleanse = Callable[..., Ran]

MODEL = Path(__file__).parents[1] / "data" / "backdoored.safetensors"
STAGES = ["looking for weaknesses", "looking for triggers", "looking for a sinusoidal trigger"]
STAGES += ["planting canaries", "looking for weaknesses of the copy"]
STAGES += [f"cleansing canaries, level {level}" for level in range(3)]
STAGES += ["cleansing, level 0"]
CODES = {"cleansed": 0, "not cleansed": 1, "could not tell": 2}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight unlabeled images of each of the eight classes."""
    root = tmp_path_factory.mktemp("few")
    signs.write_folder(root, 8, seed=3, labelled=False)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of tests/data on a quarter of the pixels: what it answers does not matter here."""
    found = load(read(MODEL))
    smaller = replace(found.classifier.preprocessing, input_size=(3, 16, 16))
    metadata = metadata_for(found.architecture, smaller, sorted(signs.CLASSES))
    path = tmp_path_factory.mktemp("model") / "backdoored.safetensors"
    write(path, load_file(MODEL), format=Format.SAFETENSORS, metadata=metadata)
    return path


@pytest.fixture
def cleanse(bcu, model: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cleanse:
    """Cleanses into out.safetensors, in a few steps that try every level."""
    lessen_effort(monkeypatch, canary_steps=4, search_steps=4, spectral_steps=4)
    monkeypatch.setattr(evidence, "MIN_PLANTED_SUCCESS", -1.0)
    monkeypatch.setattr(evidence, "MAX_CANARY_SUCCESS", -1.0)  # no level is enough

    def call(*words: object) -> Ran:
        own = ["--images", few, "--epochs", 1, "--batch-size", 32, "--out", tmp_path / "out.safetensors"]
        return bcu("cleanse", model, *own, *words)

    return call


def judge(monkeypatch: pytest.MonkeyPatch, word: Any) -> None:
    monkeypatch.setattr(auto.Auto, "verdict", lambda self: Verdict(word=word, why="it was told so"))


def test_it_is_the_default_and_cannot_tell_where_no_canary_could_be_planted(
    cleanse: Cleanse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MIN_PLANTED_SUCCESS", 1.1)
    monkeypatch.setattr(evidence, "MAX_CANARY_SUCCESS", 0.2)
    monkeypatch.setattr(evidence, "MAX_TRIGGER_SUCCESS", 1.0)  # a few steps remove no sinusoids
    ran = cleanse("--json")
    report = ran.json
    assert report["method"] == "auto"
    assert [stage["stage"] for stage in report["training"]] == [*STAGES[:4], "cleansing, level 0"]
    assert (ran.code, report["verdict"]["word"]) == (2, "could not tell")
    assert report["output"] is None
    assert ran.error.startswith("error: could not tell: the canary backdoors could not be trained")


@pytest.mark.parametrize("word", CODES)
@pytest.mark.parametrize("force", [False, True])
def test_only_what_is_cleansed_is_written_unless_forced(
    cleanse: Cleanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, force: bool
) -> None:
    judge(monkeypatch, word)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    StateFile(out, "another run").save({})
    ran = cleanse("--quick", "--json", *(["--force"] if force else []))
    assert ran.code == CODES[word]
    report, written = ran.json, force or word == "cleansed"
    assert report["verdict"] == {"word": word, "why": "it was told so"}
    assert (report["output"] is not None) == written
    assert (out.read_bytes() != b"old") == written
    beside = "out.safetensors.intoto.json" if written else "out.safetensors.resume"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.safetensors", beside]
    if word == "cleansed":
        assert "error: " not in ran.err
    else:
        assert ran.error.startswith(f"error: {word}: it was told so; ")
        assert ran.error.endswith("was written all the same" if force else "nothing was written")
        assert "hint: leave --quick out" in ran.err
        assert ("--force" in ran.err) == (not force)


def test_what_a_bad_verdict_withheld_is_written_without_another_training(
    cleanse: Cleanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(monkeypatch, "not cleansed")
    out = tmp_path / "out.safetensors"
    at_once = cleanse("--force", "--json").json
    bytes_at_once = out.read_bytes()
    out.unlink()
    ran = cleanse("--json")
    assert (ran.code, out.exists()) == (1, False)
    assert "--resume --force" in ran.err
    later = cleanse("--resume", "--force", "--json").json
    assert out.read_bytes() == bytes_at_once
    assert (later["details"], later["agreement"]) == (at_once["details"], at_once["agreement"])
    assert [stage["seconds"] for stage in later["training"]] == [0.0] * len(STAGES)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "out.safetensors",
        "out.safetensors.intoto.json",
    ]


def test_a_mix_is_written_later_as_it_would_have_been_at_once(
    cleanse: Cleanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state holds the student as it was trained: a mix of a mix would be another network."""
    monkeypatch.setattr(mixing, "MIN_UNMIXED_AGREEMENT", 1.1)
    out = tmp_path / "out.safetensors"
    assert cleanse("--quick", "--force", "--json").json["details"]["mix"] == 0.7
    bytes_at_once = out.read_bytes()
    out.unlink()
    assert cleanse("--quick").code == 2
    assert cleanse("--quick", "--resume", "--force").code == 2
    assert out.read_bytes() == bytes_at_once


@pytest.mark.parametrize(("prefer", "mix"), [("accuracy", 0.5), ("removal", 1.0)])
def test_a_preference_moves_the_mix(
    cleanse: Cleanse, monkeypatch: pytest.MonkeyPatch, prefer: str, mix: float
) -> None:
    monkeypatch.setattr(mixing, "MIN_UNMIXED_AGREEMENT", 1.1)
    assert cleanse("--quick", "--prefer", prefer, "--json").json["details"]["mix"] == mix


def test_people_see_the_evidence_and_what_the_verdict_does_not_mean(
    cleanse: Cleanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(monkeypatch, "cleansed")
    ran = cleanse()
    assert ran.code == 0, ran.err
    assert "warning: 64 images are too few for a verdict" in ran.err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ran.out.splitlines() if "│" in line]
    assert [row[:2] for row in rows if len(row) == 4][:12] == [
        [level, trigger] for level in "012" for trigger in ("patch", "blend", "sinusoid", "warp")
    ]
    looked_for = [[kind, "8"] for kind in ("patch", "perturbation", "warp")]
    assert [row[:2] for row in rows][12:] == [*looked_for, ["sinusoid", "48"]]
    text = " ".join(ran.out.split())
    assert "cleansed: it was told so" in text
    assert "level 0 of 2" in text
    assert "distillation-conditional" in text
    assert "bcu inspect --scan" in text
    assert str(tmp_path / "out.safetensors") in "".join(ran.out.split())


def test_the_classes_that_triggers_lead_to_are_named(
    cleanse: Cleanse, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evidence, "MIN_TRIGGER_SUCCESS", 0.0)
    monkeypatch.setattr(evidence, "MIN_LOG_ODDS_GAP", -99.0)
    report = cleanse("--quick", "--json").json
    assert report["classes"] == sorted(signs.CLASSES)
    shown = []
    for classes in (report["classes"], []):
        cleanse_output.show(report | {"classes": classes})
        lines = capfd.readouterr().out.splitlines()
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│ patch" in line]
        shown.append(rows[0][2:4])
    assert shown == [
        ["8", "ahead-only, danger, no-entry and 5 more"],
        ["8", "class 0, class 1, class 2 and 5 more"],
    ]


def test_people_are_not_told_of_a_good_verdict_that_there_is_not(
    cleanse: Cleanse, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(monkeypatch, "not cleansed")
    ran = cleanse("--quick")
    assert ran.code == 1
    assert "not written" in ran.out
    assert "distillation-conditional" not in ran.out
    assert "Backdoors of our own" not in ran.out  # --quick plants none


def test_an_interruption_in_any_stage_leaves_the_old_file_and_is_resumed_to_the_same_bytes(
    cleanse: Cleanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(monkeypatch, "cleansed")
    out, state = tmp_path / "out.safetensors", tmp_path / "out.safetensors.resume"
    assert cleanse().code == 0
    whole = out.read_bytes()
    keep = resuming._save_if_due

    def interrupt_in(number: int) -> Callable[..., None]:
        def keep_or_stop(stages: list[Any], keeper: Any, stop: Any, asked: Any) -> None:
            stop.requested = len(stages) == number and stages[-1].training.done == 1
            keep(stages, keeper, stop, asked)

        return keep_or_stop

    out.write_bytes(b"old")
    for number, title in enumerate(STAGES, start=1):  # one run, interrupted once in each stage
        monkeypatch.setattr(resuming, "_save_if_due", interrupt_in(number))
        stopped = cleanse(*(["--resume"] if number > 1 else []))
        assert stopped.code == 130
        assert f"of {title}; --resume" in stopped.err
        assert ("resuming after step 1 of" in stopped.err) == (number > 1)
        assert (out.read_bytes(), state.exists()) == (b"old", True)
    monkeypatch.setattr(resuming, "_save_if_due", keep)
    resumed = cleanse("--resume")
    assert resumed.code == 0, resumed.err
    assert "resuming after step 1 of" in resumed.err
    assert (out.read_bytes() == whole, state.exists()) == (True, False)


def test_what_is_left_is_searched_before_a_good_verdict_and_found_again_after_an_interruption(
    cleanse: Cleanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Verdict(word="cleansed", why="it was told so")
    monkeypatch.setattr(Evidence, "verdict_on_known_triggers", lambda self: good)
    lessen_effort(monkeypatch, verification_steps=4)
    monkeypatch.setattr(patches, "SIDES", (4,))
    out = tmp_path / "out.safetensors"
    at_once = cleanse("--quick", "--force", "--json").json
    whole = out.read_bytes()
    assert at_once["training"][-1]["stage"] == "looking for remaining triggers"
    assert [len(each["found"]) for each in at_once["details"]["residual_searches"]] == [8] * 4
    keep = resuming._save_if_due

    def interrupt(stages: list[Any], keeper: Any, stop: Any, asked: Any) -> None:
        last = stages[-1]
        stop.requested = last.title == "looking for remaining triggers" and last.training.done == 2
        keep(stages, keeper, stop, asked)

    monkeypatch.setattr(resuming, "_save_if_due", interrupt)
    assert cleanse("--quick", "--force").code == 130
    monkeypatch.setattr(resuming, "_save_if_due", keep)
    later = cleanse("--quick", "--force", "--resume", "--json").json
    assert (later["details"], later["verdict"]) == (at_once["details"], at_once["verdict"])
    assert out.read_bytes() == whole


def test_people_see_what_was_found_on_the_cleansed_network(
    cleanse: Cleanse, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = TriggerSuccess(
        trigger="square",
        target=1,
        before=Proportion(hits=98, of=100),
        after=Proportion(hits=27, of=100),
        change=lambda images: images,
    )
    usual = [replace(left, target=each, after=Proportion(hits=3, of=100)) for each in (0, 2, 3)]
    searches = [ResidualSearch(search="enumeration", suspects=(1,), found=(usual[0], left, *usual[1:]))]
    good = Verdict(word="cleansed", why="it was told so")
    monkeypatch.setattr(Evidence, "verdict_on_known_triggers", lambda self: good)

    def verify(self: auto.Auto) -> Iterator[Any]:
        self.evidence = replace(self.evidence, residual_searches=searches)
        return iter(())

    monkeypatch.setattr(auto.Auto, "_verify", verify)
    ran = cleanse("--quick")
    assert ran.code == 1
    assert "not cleansed: with a square found on the cleansed network, 27 of 100 images" in ran.error
    (row,) = [line for line in ran.out.splitlines() if "enumeration" in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells[:2] == ["enumeration", "square"]
    assert cells[2].endswith("(suspected)")
    assert cells[3:] == ["98.00 % of 100", "27.00 % of 100", "3.00 %"]


@pytest.mark.parametrize("name", ["strength", "ratios", "init", "targets", "temperature"])
def test_an_option_of_the_papers_recipe_without_its_method_says_so(cleanse: Cleanse, name: str) -> None:
    ran = cleanse(f"--{name}", "3")
    assert ran.code == 2
    assert f"--method auto has no --{name}" in ran.error
    assert "hint: it is an option of --method bcu; auto takes --epochs" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "ft", "--quick"], "--method ft has no --quick"),
        (["--method", "ft", "--prefer", "accuracy"], "--method ft has no --prefer"),
    ],
)
def test_options_of_its_own_are_refused_elsewhere(cleanse: Cleanse, words: list[str], message: str) -> None:
    ran = cleanse(*words)
    assert ran.code == 2
    assert message in ran.error


@pytest.mark.parametrize(("unproven", "hinted"), [("", True), ("at a learning rate of 0.01 for 0.05", False)])
def test_more_images_are_advised_only_where_they_can_help(
    unproven: str, hinted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = {"word": "could not tell", "why": "too little is known"}
    explain({"verdict": verdict, "output": {"path": "x"}, "details": {"unproven": unproven}})
    said = capsys.readouterr().err
    assert "error: could not tell: too little is known" in said
    assert ("give it more images" in said) == hinted
