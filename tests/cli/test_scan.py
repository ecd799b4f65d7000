"""``bcu inspect --scan``: what the detectors say reaches the report, and never more than is known."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from helpers import shorten_detectors
from PIL import Image
from safetensors.torch import load_file, save_file

from bcu_cli.detectors import verdict
from bcu_cli.errors import OutputError
from bcu_cli.models import build

if TYPE_CHECKING:
    from bcu_cli.detectors.base import Subject

SAID = ("--mean", "0.5", "--std", "0.5", "--input-size", "16")

DATA = Path(__file__).parents[1] / "data"
MODEL, SMALL = DATA / "backdoored.safetensors", DATA / "backdoored16.safetensors"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A network of nine classes that has learnt nothing."""
    save_file(build("resnet8", num_classes=9).state_dict(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.mark.slow
def test_detectors_lead_to_the_class_of_the_backdoor(bcu, photos: Path, tmp_path: Path) -> None:
    ran = bcu("inspect", SMALL, "--scan", "--images", photos, "--evidence", tmp_path / "seen", "--json")
    assert ran.code == 1
    assert ran.json["verdict"] == "suspicious"
    (file,) = ran.json["files"]
    assert file["safe"] is True
    assert file["problem"] is None
    assert [finding["rule"] for finding in file["findings"]] == ["scan-suspicious"]
    scan = file["scan"]
    assert (scan["verdict"], scan["class"]) == ("suspicious", 0)
    assert scan["suspicion"] > scan["calibration"]["suspicious_from"]
    assert scan["images"]["used"] == 320
    found = {each["detector"]: each for each in scan["detectors"]}
    assert list(found) == [
        "inversion",
        "last_layer",
        "lipschitz",
        "mmbd",
        "perturbation",
        "sinusoid",
        "skew",
        "warping",
    ]
    assert scan["searched"] == list(range(8))
    assert all(len(each["per_class"]) == (0 if each["class"] is None else 8) for each in found.values())
    assert found["inversion"]["class"] == 0
    assert found["inversion"]["evidence"]["success"] > 0.5
    assert {picture["path"].rpartition("-")[2] for picture in scan["pictures"]} == {
        *("mask.png", "trigger.png", "input.png", "perturbation.png", "sinusoid.png", "warped.png")
    }
    for picture in scan["pictures"]:
        with Image.open(picture["path"]) as opened:
            assert opened.size == (64, 64)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores do not matter."""
    shorten_detectors(monkeypatch)


@pytest.fixture
def thresholds(monkeypatch: pytest.MonkeyPatch, few_steps: None):
    """Make the networks of a test suspicious, inconclusive or clean-looking, whatever their scores."""

    def choose(word: str) -> None:
        unit = {"suspicious": 1e-6, "inconclusive": 1e6, "clean-looking": 1e6}[word]
        calibration = verdict.Calibration(
            units={"mmbd": unit},
            clean_below=1.0 if word == "clean-looking" else 0.0,
            networks=(20, 40),
            false_alarms=(1, 10),
            misses=(2, 20),
        )
        monkeypatch.setattr(
            verdict, "calibrations", lambda: {"images": calibration, "no images": calibration}
        )

    return choose


@pytest.mark.parametrize(
    ("word", "code", "said"), [("suspicious", 1, 0), ("inconclusive", 2, 1), ("clean-looking", 0, 0)]
)
def test_the_verdict_decides_the_exit_code(
    bcu, network: Path, thresholds, word: str, code: int, said: int
) -> None:
    thresholds(word)
    ran = bcu("inspect", network, "--scan", *SAID)
    assert ran.code == code
    assert word in ran.out
    assert "10.00 % (1 of 10; " in ran.out  # how often it is wrong
    assert {"lipschitz", "mmbd"} <= set(ran.out.split())
    assert "inversion" not in ran.out  # which needs images
    assert ("was not decided" in ran.err) == bool(said)
    document = bcu("inspect", network, "--scan", *SAID, "--json").json
    assert document["verdict"] == document["files"][0]["scan"]["verdict"] == word


def test_what_fails_can_be_chosen(bcu, network: Path, thresholds) -> None:
    thresholds("suspicious")
    assert bcu("inspect", network, "--scan", *SAID, "--fail-on", "unsafe").code == 0
    thresholds("inconclusive")
    assert bcu("inspect", network, "--scan", *SAID, "--fail-on", "unsafe,inconclusive").code == 1


@pytest.mark.parametrize(
    ("word", "result", "notes"),
    [
        ("suspicious", ("scan-suspicious", "fail", "error"), []),
        ("inconclusive", ("scan-undecided", "open", "none"), ["scan-undecided"]),
        ("clean-looking", ("scan-clean-looking", "pass", "none"), []),
    ],
)
def test_sarif_says_what_was_decided_and_what_was_not(
    bcu, network: Path, thresholds, word: str, result: tuple[str, str, str], notes: list[str]
) -> None:
    thresholds(word)
    (run,) = bcu("inspect", network, "--scan", *SAID, "--format", "sarif").json["runs"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is (word != "inconclusive")
    assert [note["descriptor"]["id"] for note in invocation["toolExecutionNotifications"]] == notes
    (found,) = run["results"]
    assert (found["ruleId"], found.get("kind", "fail"), found["level"]) == result
    assert run["tool"]["driver"]["rules"][found["ruleIndex"]]["id"] == found["ruleId"]


def test_what_is_unsafe_is_not_scanned(bcu, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(pickle.dumps({"a": print}))
    ran = bcu("inspect", tmp_path / "m.pt", "--scan", "--json")
    assert ran.code == 1
    assert "scan" not in ran.json["files"][0]


def test_too_few_classes_and_what_is_asked_for_are_said(bcu, network: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.safetensors"
    save_file(build("resnet8", num_classes=2).state_dict(), few)
    ran = bcu("inspect", few, "--scan", *SAID)
    assert ran.code == 2
    assert "a network of 2 classes has too few to compare" in ran.error
    ran = bcu("inspect", network, "--scan")
    assert ran.code == 2
    assert "--mean" in ran.err


@pytest.mark.parametrize("how", ["answers that are no numbers", "a detector that fails"])
def test_a_scan_that_fails_hides_no_finding(
    bcu, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_steps: None, how: str
) -> None:
    (tmp_path / "unsafe.pt").write_bytes(pickle.dumps({"a": print}))
    if how == "a detector that fails":

        def fail(self: object, subject: object) -> None:
            raise RuntimeError("not implemented for this layer")

        monkeypatch.setattr("bcu_cli.detectors.lipschitz.LipschitzOutliers.scan", fail)
    else:
        state = build("resnet8", num_classes=9).state_dict()
        state["bn1.weight"] *= 1e30
        state["fc.weight"] *= 3e38
        save_file(state, network)
    ran = bcu("inspect", tmp_path, "--scan", *SAID, "--json")
    assert ran.code == 1  # for the unsafe one
    problem = {file["path"].rpartition("/")[2]: file["problem"] for file in ran.json["files"]}[
        "m.safetensors"
    ]
    assert problem["rule"] == "scan-failed"
    assert ("NaN or infinite" if how.startswith("answers") else "not implemented for") in problem["message"]
    network.with_name("unsafe.pt").unlink()
    assert bcu("inspect", tmp_path, "--scan", *SAID).code == 2


def own_code(bcu, folder: Path, state: dict[str, torch.Tensor], built: str):  # type: ignore[no-untyped-def]
    """Scans a network of the user's own code."""
    model, code = folder / "m.safetensors", folder / "net.py"
    imports = "from bcu_cli.models import build\nfrom torch import nn\n\n"
    code.write_text(f"{imports}def make(num_classes):\n    return {built}\n")
    save_file(state, model)
    said = ["--arch", f"{code}:make", "--mean", "0.5", "--std", "0.5", "--input-size", "32"]
    return bcu("inspect", model, "--scan", *said, "--json")


def test_answers_that_tell_nothing_do_not_look_clean(bcu, tmp_path: Path) -> None:
    state = load_file(MODEL)
    state["fc.weight"] *= 1e-6
    state["fc.bias"] *= 1e-6
    ran = own_code(bcu, tmp_path, state, "build('resnet8', num_classes=num_classes)")
    assert ran.code == 2
    (file,) = ran.json["files"]
    assert file["problem"]["rule"] == "scan-failed"
    assert "hardly differ" in file["problem"]["message"]


def test_a_softmax_at_the_end_hides_no_backdoor(bcu, tmp_path: Path) -> None:
    state = {f"0.{key}": value for key, value in load_file(MODEL).items()}
    built = "nn.Sequential(build('resnet8', num_classes=num_classes), nn.Softmax(1))"
    ran = own_code(bcu, tmp_path, state, built)
    assert ran.code == 1
    (file,) = ran.json["files"]
    assert file["scan"]["verdict"] == "suspicious"
    assert "probabilities" in ran.err


def test_pictures_that_cannot_be_written_hide_no_verdict(
    bcu, network: Path, thresholds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OutputError("the disk is full", "make room")

    thresholds("suspicious")
    monkeypatch.setattr("bcu_cli.report.trigger_sheet.write_image", fail)
    ran = bcu("inspect", network, "--scan", *SAID, "--evidence", tmp_path / "seen", "--json")
    assert ran.code == 1
    (file,) = ran.json["files"]
    assert file["scan"]["verdict"] == "suspicious"
    assert "disk is full" in file["problem"]["message"]


def test_evidence_needs_a_folder_before_anything_is_inspected(bcu, network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = bcu("inspect", network, "--scan", *SAID, "--evidence", tmp_path / "file")
    assert ran.code == 2
    assert "cannot be used" in ran.error
    assert not ran.out


@pytest.mark.parametrize(
    "words",
    [
        ["--images", "x"],
        ["--evidence", "x"],
        ["--page", "x.html"],
        ["--mean", "0.5"],
        ["--std", "1"],
        ["--input-size", 8],
        ["--device", "cpu"],
        ["--precision", "fp32"],
        ["--seed", 1],
    ],
)
def test_options_of_a_scan_need_it(bcu, network: Path, words: list[object]) -> None:
    ran = bcu("inspect", network, *words)
    assert ran.code == 2
    assert f"{words[0]} is for a scan" in ran.error
    assert "add --scan" in ran.err


def test_a_missing_folder_is_said_once(bcu, network: Path, tmp_path: Path) -> None:
    ran = bcu("inspect", network, "--scan", "--images", tmp_path / "nowhere")
    assert ran.code == 2
    assert ran.err.count("nowhere") == 1


def test_a_page_shows_the_scan(
    bcu, network: Path, thresholds, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcu_cli.detectors.base import Scores
    from bcu_cli.detectors.running import DetectorRun

    def found(subject: Subject, path: Path) -> list[DetectorRun]:
        images = subject.drawn(3)
        scores = Scores(
            detector="mmbd",
            score=1.0,
            target=2,
            per_class=torch.eye(9)[2],
            evidence={"success": 0.9, "images": 20},
            examples=(images, 1.0 - images),
        )
        return [DetectorRun(scores=scores, seconds=0.0)]

    thresholds("suspicious")
    monkeypatch.setattr("bcu_cli.workflows.scan._run_detectors", found)  # they take long
    page = tmp_path / "scan.html"
    ran = bcu("inspect", network, "--scan", *SAID, "--images", photos, "--page", page, "--json")
    assert ran.code == 1, ran.err
    assert ran.json["page"]["path"] == str(page)
    assert "examples" not in ran.json["files"][0]["scan"]
    assert len(ran.json["files"][0]["scan"]["suspicions"]) == 9
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 6
    assert "class 2" in text
    assert bcu("inspect", network, "--scan", *SAID, "--page", tmp_path / "scan.pdf").code == 2


def test_classes_that_were_not_searched_are_said_beside_the_verdict(
    bcu, network: Path, thresholds, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcu_cli.detectors.base import Scores
    from bcu_cli.detectors.running import DetectorRun

    values = torch.full((9,), float("nan"))
    values[[1, 4, 6, 8]] = torch.tensor([0.0, 0.0, 0.1, 0.0])
    scores = Scores(detector="mmbd", score=0.1, target=6, per_class=values, searched=(1, 4, 6, 8))
    runs = [DetectorRun(scores=scores, seconds=0.0)]
    thresholds("clean-looking")
    monkeypatch.setattr("bcu_cli.workflows.scan._run_detectors", lambda *_: runs)  # they take long
    ran = bcu("inspect", network, "--scan", *SAID, "--json")
    assert ran.code == 2, ran.err
    assert "nothing stands out, but the scan searched 4 of 9 classes" in ran.err
    scan = ran.json["files"][0]["scan"]
    assert (scan["verdict"], scan["searched"]) == ("inconclusive", [1, 4, 6, 8])
    assert [value is None for value in scan["suspicions"]] == [n not in {1, 4, 6, 8} for n in range(9)]
    sarif = bcu("inspect", network, "--scan", *SAID, "--format", "sarif").out
    assert "it searched 4 of 9 classes" in sarif
    said = " ".join(bcu("inspect", network, "--scan", *SAID).out.split())
    assert "searched 4 of 9 classes" in said
    assert "not known for one like this" in said
    values[:] = 0.0
    assert "not known" not in bcu("inspect", network, "--scan", *SAID).out
    assert bcu("inspect", network, "--scan", *SAID).code == 0
    larger = (*SAID[:-1], "40")
    assert "not known for one like this" in bcu("inspect", network, "--scan", *larger).out


@pytest.mark.parametrize(
    ("searched", "suspicion", "images", "advice"),
    [
        (4, 0.1, {}, "no option searches the other classes"),
        (4, 0.7, {}, "more --images"),
        (9, 0.1, {}, "more --images"),
        (4, 0.1, None, "scan it with --images"),
    ],
)
def test_advice_is_of_use(
    searched: int, suspicion: float, images: dict[str, int] | None, advice: str
) -> None:
    from bcu_cli.workflows.scan import _advice

    given = {"used": 10, **images} if images is not None else None
    scan = {"searched": range(searched), "suspicions": [0.0] * 9, "suspicion": suspicion, "images": given}
    assert advice in _advice({**scan, "calibration": {"clean_below": 0.5}})
