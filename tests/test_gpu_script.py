"""The script for a quarter of an hour of a GPU: its order, its time limit, and what it writes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import shorten_detectors

SCRIPT = Path(__file__).parents[1] / "examples/benchmarks/gpu.py"


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def written(script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["gpu.py", "--out", str(out), "--device", "cpu", *words])
    script["main"]()
    return json.loads(out.read_text())


def test_it_writes_after_each_step_and_an_error_ends_that_step_alone(script, tmp_path, monkeypatch) -> None:
    seen: list[list[str]] = []

    def step(name: str) -> Any:
        def act(session: Any) -> dict[str, Any]:
            out = tmp_path / "gpu.json"
            seen.append(list(json.loads(out.read_text())["steps"]) if out.exists() else [])
            if name == "speed":
                raise RuntimeError("no such thing")
            return {"name": name}

        return act

    names = ["tests", "speed", "resnet50", "resnet50_scan", "vit_b16", "vit_b16_scan"]
    assert list(script["STEPS"]) == names
    for name in names:
        monkeypatch.setitem(script["STEPS"], name, step(name))
    document = written(script, tmp_path, monkeypatch, "--smoke")
    assert seen == [names[:place] for place in range(len(names))]
    assert document["steps"]["speed"]["error"] == "RuntimeError: no such thing"
    assert document["steps"]["vit_b16"]["found"] == {"name": "vit_b16"}
    assert (document["left_out"], document["device"]["type"]) == ([], "cpu")


def test_a_step_ends_with_the_time_and_the_rest_is_left_out(script, tmp_path, monkeypatch) -> None:
    def slow(session: Any) -> dict[str, Any]:
        session.run(sys.executable, "-c", "import time; time.sleep(60)")
        return {}

    monkeypatch.setitem(script["STEPS"], "tests", slow)
    document = written(script, tmp_path, monkeypatch, "--smoke", "--seconds", "0.5")
    assert document["steps"]["tests"]["error"].startswith("TimeoutError: ")
    assert document["steps"]["tests"]["seconds"] < 30
    assert document["left_out"] == ["speed", "resnet50", "resnet50_scan", "vit_b16", "vit_b16_scan"]


def test_a_cpu_needs_smoke(script, tmp_path, monkeypatch) -> None:
    with pytest.raises(SystemExit) as refused:
        written(script, tmp_path, monkeypatch)
    assert refused.value.code == 2


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(script, tmp_path, monkeypatch, bcu, capfd) -> None:
    """The steps of one network; the other has the same. Only pytest is a process of its own here."""
    assert len(set(script["SMOKE"].values())) == 1
    start = script["Session"].run

    def run(session: Any, *words: object) -> tuple[int, str, str]:
        given = list(map(str, words))
        if given[1:3] == ["-m", "bcu_cli"]:
            ran = bcu(*given[3:])
            return ran.code, ran.out, ran.err
        if given[1] == "-m":
            return start(session, *words)  # type: ignore[no-any-return]
        with monkeypatch.context() as here:
            here.setattr("sys.argv", given[1:])
            capfd.readouterr()
            runpy.run_path(given[1], run_name="__main__")
        return 0, *capfd.readouterr()

    shorten_detectors(monkeypatch)
    monkeypatch.setattr(script["Session"], "run", run)
    steps = ["tests", "speed", "resnet50", "resnet50_scan"]
    only = [word for name in steps for word in ("--only", name)]
    document = written(script, tmp_path, monkeypatch, "--smoke", *only)
    assert (list(document["steps"]), document["left_out"]) == (steps, [])
    assert not [step for step in document["steps"].values() if "error" in step]
    assert document["steps"]["resnet50"]["found"]["training"]
    assert document["steps"]["resnet50_scan"]["found"]["seconds"]["total"] > 0
