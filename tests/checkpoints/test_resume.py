"""The state of an interrupted run: only whole ones are taken up, and only bcu's own are replaced."""

from __future__ import annotations

import os
import random
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bcu_cli.checkpoints import resume
from bcu_cli.checkpoints.resume import StateFile, path_of, refuse_foreign
from bcu_cli.checkpoints.writing import atomic_write
from bcu_cli.errors import BcuError, CheckpointError, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STATE = {"stages": [{"title": "distilling", "training": {"step": 3, "weights": torch.arange(4000.0)}}]}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output whose run was interrupted."""
    path = tmp_path / "out.safetensors"
    StateFile(path, "this run").save(STATE)
    return path


def same(found: dict[str, Any] | None) -> bool:
    weights = found and found["stages"][0]["training"]["weights"]
    return weights is not None and torch.equal(weights, STATE["stages"][0]["training"]["weights"])


def test_a_whole_state_is_read_and_removed(out: Path, tmp_path: Path) -> None:
    keeper = StateFile(out, "this run")
    assert same(keeper.load())
    keeper.remove()
    assert keeper.load() is None
    assert list(tmp_path.iterdir()) == []


def test_every_damage_is_refused_in_one_message(out: Path) -> None:
    """Bytes turned, holes of zeros as a full disk leaves them, cuts, bytes moved or added."""
    whole = path_of(out).read_bytes()
    chance = random.Random(0)
    for number in range(400):
        place, length = chance.randrange(len(whole)), chance.randrange(1, 600)
        part = whole[place : place + length]
        damaged = [
            whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :],
            whole[:place] + bytes(len(part)) + whole[place + len(part) :],
            whole[:place],
            whole[:place] + whole[place + len(part) :],
            whole + chance.randbytes(length),
            whole[:place] + part[::-1] + whole[place + len(part) :],
        ][number % 6]
        path_of(out).write_bytes(damaged)
        if damaged == whole:  # zeros where zeros were
            assert same(StateFile(out, "this run").load())
            continue
        with pytest.raises(BcuError, match="\\.resume ") as error:
            StateFile(out, "this run").load()
        assert error.value.hint
        assert "\n" not in error.value.message


def test_a_state_of_another_run_version_or_kind_says_so(out: Path) -> None:
    with pytest.raises(UsageError, match="other options, images, model or version"):
        StateFile(out, "another run").load()
    whole = path_of(out).read_bytes()
    path_of(out).write_bytes(whole.replace(b"layout 2", b"layout 3", 1))
    with pytest.raises(CheckpointError, match="another version of bcu"):
        StateFile(out, "this run").load()
    for strange in ([1, 2], "text", torch.ones(2)):
        StateFile(out, "this run").save(strange)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match="holds no state"):
            StateFile(out, "this run").load()


@pytest.mark.parametrize("kind", ["file", "empty", "torch", "folder", "fifo", "link to nothing", "link"])
def test_what_bcu_has_not_written_is_never_replaced_or_removed(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "model.safetensors"
    path = path_of(out)
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "torch":
        torch.save({"fingerprint": "this run", "state": {}}, path)
    elif kind.startswith("link"):
        path.symlink_to(tmp_path / "mine")
        if kind == "link":
            (tmp_path / "mine").write_bytes(b"mine")
    else:
        path.write_bytes(b"" if kind == "empty" else b"a model of mine")
    before = os.lstat(path)
    keeper = StateFile(out, "this run")
    for act in (lambda: refuse_foreign(path), keeper.load, lambda: keeper.save(STATE), keeper.remove):
        with pytest.raises(OutputError, match="is in the way") as error:
            act()
        assert "another --out" in error.value.hint
    assert os.lstat(path) == before


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_state_that_finds_no_room_leaves_the_last_one(out: Path, tmp_path: Path) -> None:
    before = path_of(out).read_bytes()
    keeper = StateFile(out, "this run")
    with files_of_at_most(5000), pytest.raises(OutputError, match="cannot be written: file too large"):
        keeper.save(STATE | {"more": torch.zeros(10_000)})
    assert keeper.failed
    assert path_of(out).read_bytes() == before
    assert list(tmp_path.iterdir()) == [path_of(out)]


def test_saving_takes_at_most_a_fiftieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    keeper = StateFile(tmp_path / "out.safetensors", "this run")

    def slow(path: Path) -> Any:
        now[0] += costs[-1]
        return atomic_write(path)

    monkeypatch.setattr(resume, "atomic_write", slow)
    costs: list[float] = []
    for cost, interval in ((0.1, 60.0), (20.0, 1000.0), (0.1, 60.0)):
        costs.append(cost)
        keeper.save(STATE)
        saved = now[0]
        for passed, due in ((interval - 1.0, False), (interval, True)):
            now[0] = saved + passed
            assert keeper.is_due() == due


def test_a_failed_save_waits_as_long_as_it_took(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    keeper = StateFile(out, "this run")

    def refuse(path: Path) -> Any:
        now[0] += 10.0
        raise OutputError(f"{path} cannot be written", "free some space")

    monkeypatch.setattr(resume, "atomic_write", refuse)
    with pytest.raises(OutputError):
        keeper.save(STATE)
    now[0] = 10.0 + 499.0
    assert not keeper.is_due()
    now[0] = 10.0 + 500.0
    assert keeper.is_due()
