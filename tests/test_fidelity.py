"""The comparison of ``--method bcu`` with the published procedure: both run, on the same images."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

SCRIPTS = Path(__file__).parents[1] / "examples/benchmarks"


def run_here(words: Sequence[str], monkeypatch: pytest.MonkeyPatch, bcu: Any) -> None:
    """What the comparison starts as a process, in this one."""
    if words[1] == "-m":
        assert bcu(*words[3:]).code == 0
        return
    with monkeypatch.context() as here:
        here.setattr(sys, "argv", [*words[1:], "--workers", "0"])
        runpy.run_path(words[1], run_name="__main__")


@pytest.mark.slow
def test_both_sides_are_measured_and_what_is_there_is_not_computed_again(
    bcu, backdoored: Path, photos: Path, labelled: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    started: list[str] = []

    def run(words: Sequence[str], **_: object) -> None:
        started.append(words[1])
        run_here(words, monkeypatch, bcu)

    monkeypatch.setattr("subprocess.run", run)
    out = tmp_path / "fidelity.json"
    words = ["fidelity.py", backdoored, "--images", photos, "--data", labelled / "test", "--out", out]
    words += ["--epochs", 1, "--seeds", 0, "--device", "cpu"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        runpy.run_path(str(SCRIPTS / "fidelity.py"), run_name="__main__")
    assert len(started) == 2, "the second time nothing is left"
    found = json.loads(out.read_text())
    assert found["original"]["asr"] > 90
    assert list(found["seeds"]["0"]) == ["published", "bcu"]
    for side in found["seeds"]["0"].values():
        assert 0 < side["agreement"] <= 100
    shown = capfd.readouterr().out
    assert shown.count("| published |") == 2
