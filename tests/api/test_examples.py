"""The examples in the docstrings of the public names are run."""

from __future__ import annotations

import doctest
from typing import TYPE_CHECKING

import pytest
import torch
from helpers import shorten_detectors

import bcu_cli as bcu
from bcu_cli.images.sources import signs

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [name for name in bcu.__all__ if not name.startswith("__")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name."""
    root = tmp_path_factory.mktemp("examples")
    signs.write_folder(root / "labelled" / "train", 8, seed=1)
    signs.write_folder(root / "labelled" / "test", 5, seed=2)
    signs.write_folder(root / "photos", 8, seed=3, labelled=False)
    out = root / "model.safetensors"
    bcu.attack("badnets", data=root / "labelled", arch="resnet8", out=out, epochs=1, device="cpu")
    return root


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    shorten_detectors(monkeypatch)
    found = getattr(bcu, name)
    parser = doctest.DocTestParser()
    test = parser.get_doctest(found.__doc__, {"bcu": bcu, "torch": torch}, name, None, None)
    assert test.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
