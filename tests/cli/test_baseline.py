"""``bcu inspect --baseline``: only what is new is reported, and a doubt never ends with exit code 0."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from bcu_cli.detectors import verdict
from bcu_cli.detectors.base import Scores
from bcu_cli.detectors.running import DetectorRun
from bcu_cli.models import build
from bcu_cli.report.baseline import of_finding

if TYPE_CHECKING:
    from pathlib import Path

SCAN = ("--scan", "--mean", "0.5", "--std", "0.5", "--input-size", "16")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with models/, which holds an unsafe pickle."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.pt").write_bytes(pickle.dumps({"a": print}))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


@pytest.fixture(params=["json", "sarif"])
def baseline(request: pytest.FixtureRequest, bcu, tmp_path: Path):
    """Writes the document of an inspection of models/ to a file."""

    def write(*options: object) -> Path:
        path = tmp_path / "bcu.json"
        path.write_text(bcu("inspect", "models", "--format", request.param, *options).out)
        return path

    return write


def test_what_is_known_is_neither_reported_nor_counted(bcu, zoo: Path, baseline) -> None:
    assert bcu("inspect", "models").code == 1
    known = baseline()
    ran = bcu("inspect", "models", "--baseline", known, "--json")
    assert ran.code == 0, ran.err
    (file,) = ran.json["files"]
    assert (file["safe"], file["findings"]) == (False, [])  # it is as unsafe as it was
    assert [each["rule"] for each in file["known"]["findings"]] == ["pickle-global"]
    assert ran.json["verdict"] == "unsafe"
    assert (ran.json["baseline"]["known"], ran.json["baseline"]["new"]) == (1, 0)
    table = bcu("inspect", "models", "--baseline", known)
    assert table.code == 0
    assert "0 new, 1 known" in table.err
    assert "NO" in table.out


def test_what_is_new_fails(bcu, zoo: Path, baseline) -> None:
    known = baseline()
    (zoo / "b.pt").write_bytes(pickle.dumps({"a": print}))  # the same finding in another file
    ran = bcu("inspect", "models", "--baseline", known, "--format", "sarif")
    assert ran.code == 1
    (run,) = ran.json["runs"]
    ((uri, state),) = [
        (each["locations"][0]["physicalLocation"]["artifactLocation"]["uri"], each["baselineState"])
        for each in run["results"]
    ]
    assert (uri, state) == ("models/b.pt", "new")
    (zoo / "b.pt").unlink()
    (zoo / "a.pt").write_bytes(pickle.dumps({"a": print, "b": eval}))  # another finding in the same file
    ran = bcu("inspect", "models", "--baseline", known, "--json")
    assert ran.code == 1
    reported = " ".join(finding["message"] for finding in ran.json["files"][0]["findings"])
    assert "eval" in reported


def test_an_unsafe_file_is_accepted_for_one_content(bcu, zoo: Path, baseline) -> None:
    """Another file under an accepted name may do anything with what it imports."""
    known = baseline()
    assert bcu("inspect", "models", "--baseline", known).code == 0
    (zoo / "a.pt").write_bytes(pickle.dumps({"more": [1.0] * 99, "a": print}))
    ran = bcu("inspect", "models", "--baseline", known, "--json")
    assert ran.code == 1
    assert "print" in ran.json["files"][0]["findings"][0]["message"]


def test_a_note_stays_known_whatever_the_content() -> None:
    note = {"rule": "r", "severity": "note", "message": "m"}
    first, other = ({"path": "a.pt", "sha256": digest} for digest in ("1", "2"))
    assert of_finding(first, note) == of_finding(other, note)
    assert of_finding(first, note | {"severity": "unsafe"}) != of_finding(
        other, note | {"severity": "unsafe"}
    )
    assert of_finding({"path": "a.pt"}, note | {"severity": "suspicious"}) is None


def test_what_could_not_be_read_stays_undecided(bcu, zoo: Path, baseline) -> None:
    """Nothing is known of its content, so that a later file of the same name may be anything."""
    (zoo / "b.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    known = baseline()
    (zoo / "b.onnx").write_bytes(b"\x08\x07\x12\x07pytorch, and another content")
    ran = bcu("inspect", "models", "--baseline", known)
    assert ran.code == 2
    assert "ONNX" in ran.error


@pytest.mark.parametrize("word", ["suspicious", "inconclusive"])
def test_verdicts_of_a_scan_are_known_too(
    bcu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baseline, word: str
) -> None:
    (tmp_path / "models").mkdir()
    model = tmp_path / "models" / "m.safetensors"
    save_file(build("resnet8", num_classes=9).state_dict(), model)
    monkeypatch.chdir(tmp_path)
    calibration = verdict.Calibration(
        units={"mmbd": 1e-6 if word == "suspicious" else 1e6},
        clean_below=0.0,
        networks=(20, 40),
        false_alarms=(1, 10),
        misses=(2, 20),
    )
    monkeypatch.setattr(verdict, "calibrations", lambda: {"images": calibration, "no images": calibration})
    found = Scores(detector="mmbd", score=1.0, target=2, per_class=torch.eye(9)[2])
    ran = [DetectorRun(scores=found, seconds=0.0)]
    monkeypatch.setattr("bcu_cli.workflows.scan._run_detectors", lambda *_: ran)  # they take long
    known = baseline(*SCAN)
    assert bcu("inspect", "models", *SCAN).code == (1 if word == "suspicious" else 2)
    assert bcu("inspect", "models", *SCAN, "--baseline", known).code == 0
    save_file(build("resnet8", num_classes=9).state_dict(), model)  # other weights
    expected = 1 if word == "suspicious" else 2
    assert bcu("inspect", "models", *SCAN, "--baseline", known).code == expected


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        '{"command": "evaluate", "schema_version": 2, "files": []}',
        '{"command": "inspect", "schema_version": 1, "files": []}',
        '{"command": "inspect", "schema_version": 2, "files": [{"path": 1}]}',
        '{"command": "inspect", "schema_version": 2, "files": 3}',
        '{"runs": []}',
        '{"runs": [{"tool": {"driver": {"name": "another"}}, "results": []}]}',
        '{"runs": [{"tool": {"driver": {"name": "bcu"}}, "results": [{}], "invocations": []}]}',
        "\xff",
    ],
)
def test_other_files_are_no_baseline(bcu, zoo: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content, encoding="latin-1")
    ran = bcu("inspect", "models", "--baseline", "other.json")
    assert ran.code == 2
    assert ran.error.startswith("error: --baseline other.json")
    assert not ran.out


def test_a_missing_file_and_a_folder_are_no_baseline(bcu, zoo: Path) -> None:
    for name in ("nowhere.json", "models"):
        ran = bcu("inspect", "models", "--baseline", name)
        assert (ran.code, f"--baseline {name} is no file" in ran.error) == (2, True)


def test_what_was_made_with_a_baseline_is_none(bcu, zoo: Path, baseline, tmp_path: Path) -> None:
    known = baseline()
    for form in ("json", "sarif"):
        (tmp_path / "next.json").write_text(
            bcu("inspect", "models", "--baseline", known, "--format", form).out
        )
        ran = bcu("inspect", "models", "--baseline", "next.json")
        assert ran.code == 2
        assert "made with --baseline" in ran.error


def test_fingerprints_of_both_forms_are_the_same(bcu, zoo: Path, tmp_path: Path) -> None:
    from bcu_cli.report import baseline

    for form in ("json", "sarif"):
        (tmp_path / form).write_text(bcu("inspect", "models", "--format", form).out)
    documents = [baseline.read(tmp_path / form) for form in ("json", "sarif")]
    assert documents[0].fingerprints == documents[1].fingerprints
    assert len(documents[0].fingerprints) == 1
    assert json.loads((tmp_path / "sarif").read_text())["runs"][0]["results"][0]["partialFingerprints"]
