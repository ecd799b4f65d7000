from __future__ import annotations

from typing import TYPE_CHECKING

from bcu_cli.cli import demo

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_story_is_told_with_every_command_printed(
    bcu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("TRAIN_PER_CLASS", 12), ("TEST_PER_CLASS", 6), ("UNLABELED_PER_CLASS", 6)):
        monkeypatch.setattr(demo, name, count)
    monkeypatch.setattr(demo, "CLEANSING", ("--method", "bcu", "--epochs", "2"))
    ran = bcu("demo", "--dir", tmp_path / "demo")
    assert ran.code == 0, ran.err
    commands = [line.split()[2] for line in ran.err.splitlines() if line.startswith("$ bcu")]
    assert commands == ["attack", "inspect", "cleanse", "evaluate"]
    assert "before" in ran.out
    assert "after" in ran.out


def test_a_folder_that_holds_something_is_left_alone(bcu, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    ran = bcu("demo", "--dir", tmp_path)
    assert ran.code == 2
    assert "is there already" in ran.error
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_file_is_no_folder(bcu, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    ran = bcu("demo", "--dir", tmp_path / "mine")
    assert (ran.code, ran.error) == (2, f"error: {tmp_path / 'mine'} is a file")


def test_a_command_that_fails_ends_the_demo(bcu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TRAIN_PER_CLASS", 0)
    monkeypatch.setattr(demo, "TEST_PER_CLASS", 1)
    ran = bcu("demo", "--dir", tmp_path / "demo")
    assert ran.code == 2
    assert "bcu attack ended with exit code 2" in ran.err
