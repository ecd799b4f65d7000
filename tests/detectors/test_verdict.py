"""From scores to a verdict: the arithmetic by hand, and that the shipped thresholds are what was fitted."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from bcu_cli.detectors import verdict
from bcu_cli.detectors.base import Scores, outlier
from bcu_cli.evaluation.measures import above_others

ROOT = Path(__file__).parents[2]


def scores(detector: str, values: list[float]) -> Scores:
    per_class = torch.tensor(values)
    score, target = outlier(per_class)
    return Scores(detector=detector, score=score, target=target, per_class=per_class)


def calibration(**units: float) -> verdict.Calibration:
    counts = {"networks": (10, 20), "false_alarms": (0, 5), "misses": (1, 9)}
    return verdict.Calibration(units=units, clean_below=0.5, **counts)


def test_a_class_is_compared_with_the_median_of_the_others() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert above_others(values).tolist() == [1 - 3, 2 - 3, 3 - 2, 10 - 2]  # of two middle values the lower
    assert outlier(values) == (8.0, 3)


def test_suspicion_adds_what_the_detectors_say_of_the_same_class() -> None:
    values = {"a": torch.tensor([0.0, 4.0, 0.0, 0.0]), "b": torch.tensor([0.0, 0.0, 3.0, 0.0])}
    assert verdict.suspicion(values, {"a": 2.0, "b": 1.0}).tolist() == [0.0, 2.0, 3.0, 0.0]
    assert verdict.suspicion(values, {"a": 2.0}).tolist() == [0.0, 2.0, 0.0, 0.0]
    values["b"] = torch.tensor([0.0, 3.0, 0.0, -9.0])  # agreement counts, and what lies below the others not
    assert verdict.suspicion(values, {"a": 1.0, "b": 1.0}).tolist() == [0.0, 5.0, 0.0, 0.0]
    with pytest.raises(KeyError):
        verdict.suspicion(values, {"a": 1.0, "c": 1.0})


@pytest.mark.parametrize(
    ("height", "word"),
    [(1.0, "suspicious"), (0.99, "inconclusive"), (0.5, "inconclusive"), (0.49, "clean-looking")],
)
def test_the_word_depends_on_the_most_suspicious_class(
    monkeypatch: pytest.MonkeyPatch, height: float, word: str
) -> None:
    monkeypatch.setattr(verdict, "calibrations", lambda: {"no images": calibration(mmbd=1.0), "images": None})
    judged = verdict.judge([scores("mmbd", [0.0, 0.0, 0.0, height]), scores_without_classes()], images=None)
    assert (judged.word, judged.target) == (word, 3)
    assert judged.suspicion == pytest.approx(height)


def scores_without_classes() -> Scores:
    return Scores(detector="lipschitz", score=9.0, target=None, per_class=torch.empty(0))


def test_with_images_another_calibration_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"no images": calibration(mmbd=1.0), "images": calibration(mmbd=1.0, inversion=1.0)}
    monkeypatch.setattr(verdict, "calibrations", lambda: both)
    judged = verdict.judge([scores("mmbd", [0, 0, 0, 0.9]), scores("inversion", [0, 0, 0, 0.5])], images=900)
    assert judged.word == "suspicious"
    assert judged.calibration is both["images"]


@pytest.mark.parametrize(("images", "word"), [(499, "inconclusive"), (500, "clean-looking")])
def test_few_images_call_nothing_clean(monkeypatch: pytest.MonkeyPatch, images: int, word: str) -> None:
    monkeypatch.setattr(verdict, "calibrations", lambda: {"images": calibration(mmbd=1.0)})
    assert verdict.judge([scores("mmbd", [0.0, 0.0, 0.0, 0.1])], images=images).word == word


def test_the_shipped_thresholds_are_what_is_fitted_to_the_scores(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "examples" / "calibration" / "calibrate.py"))
    script["fit"](ROOT / "examples" / "calibration" / "scores.json", tmp_path / "c.json")
    made = json.loads((tmp_path / "c.json").read_text())
    shipped = json.loads((ROOT / "bcu_cli" / "detectors" / verdict.CALIBRATION_FILE).read_text())
    assert made.keys() == shipped.keys()
    for name, each in shipped["calibrations"].items():
        other = made["calibrations"][name]
        assert other["units"] == pytest.approx(each["units"], rel=1e-3, abs=1e-3)
        assert other["clean_below"] == pytest.approx(each["clean_below"], rel=1e-3)
        assert [other[key] for key in ("networks", "false_alarms", "misses")] == [
            each[key] for key in ("networks", "false_alarms", "misses")
        ]


def test_the_thresholds_are_made_of_enough_networks_and_not_of_those_that_judge_them() -> None:
    script = runpy.run_path(str(ROOT / "examples" / "calibration" / "calibrate.py"))
    networks = script["networks"](ROOT / "examples" / "calibration" / "scores.json")
    clean = [n for n in networks if n.target is None]
    backdoored = [n for n in networks if n.target is not None]
    assert len(clean) >= 20
    assert len(backdoored) >= 40
    assert len({n.row["arch"] for n in networks}) == 3
    assert len({n.row["data"] for n in networks}) == 2
    for name, each in verdict.calibrations().items():
        assert all(unit > 0 for unit in each.units.values()), name
        assert 0 < each.clean_below <= 1
        held_out = each.false_alarms[1] + each.misses[1]
        assert sum(each.networks) + held_out == len(networks)
        assert held_out >= len(networks) / 4
