"""The benchmark of speed: what it asks for, and that it prints one document of the figures asked for."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples/benchmarks/speed.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The script's names, and each of its figures only its own name and whether there is a model."""
    found = runpy.run_path(str(SCRIPT))
    for name in found["FIGURES"]:
        stub = lambda setting, name=name: {"name": name, "model": setting.model is not None}  # noqa: E731
        monkeypatch.setitem(found["FIGURES"], name, stub)
    return found


def printed(
    script: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    monkeypatch.setattr("sys.argv", ["speed.py", *words.split()])
    script["main"]()
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_it_prints_every_figure_in_one_document_with_device_and_versions(script, monkeypatch, capsys) -> None:
    words = "model.safetensors --trigger t.safetensors --images photos --data labelled --device cpu"
    document = printed(script, words, monkeypatch, capsys)
    names = ["published", "profile", "start_up", "large_folder", "scaling"]
    assert document["figures"] == {name: {"name": name, "model": True} for name in names}
    assert document["device"]["type"] == "cpu"
    assert document["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_only_the_comparison_needs_a_network_with_its_pictures(script, monkeypatch, capsys) -> None:
    document = printed(script, "--only scaling --only large_folder --device cpu", monkeypatch, capsys)
    assert list(document["figures"]) == ["scaling", "large_folder"]
    for words in ("", "--only published", "model.safetensors --trigger t.safetensors --images photos"):
        with pytest.raises(SystemExit) as refused:
            printed(script, words, monkeypatch, capsys)
        assert refused.value.code == 2
        assert "the figure published needs MODEL, --trigger, --images and --data" in capsys.readouterr().err
