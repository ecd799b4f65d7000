"""A zoo in one command, with a fake in place of what trains an entry; and once with true, tiny attacks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from helpers import Telling, descendants_of

from bcu_cli import attacks
from bcu_cli.cli import zoo
from bcu_cli.errors import UsageError
from bcu_cli.images.sources import signs
from bcu_cli.runs import children, engine, locks, resuming
from bcu_cli.workflows import jobs, zoo_folder
from bcu_cli.workflows.attack import AttackRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Ran

FAKE = (sys.executable, str(Path(__file__).with_name("fake_attack.py")))
DRIVER = f"""
import sys
from bcu_cli.cli.app import run
from bcu_cli.workflows import jobs
jobs.PROGRAM = {FAKE!r}
sys.exit(run(sys.argv[1:]))
"""
"""The command line with the fake, as a process of its own."""
TWO = ["--only", "badnets,sig"]
NAMES = ["none-s0", "badnets-t0-s0", "sig-t0-s0"]


class Keeper:
    """Calls ``bcu attack all`` on one zoo, and reads what is there."""

    def __init__(self, bcu: Callable[..., Ran], root: Path) -> None:
        self.data, self.folder = root / "data", root / "zoo"
        self.data.mkdir()
        self._bcu = bcu

    def words(self, *words: object) -> list[str]:
        own = ["attack", "all", "--data", self.data, "--arch", "resnet20", "--out", self.folder]
        return [str(word) for word in (*own, *words)]

    def __call__(self, *words: object) -> Ran:
        return self._bcu(*self.words(*words))

    def start(self, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, *self.words(*words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, **pipes, text=True, start_new_session=True)

    def tell(self, **behaviour: Any) -> None:
        (self.data / "behaviour.json").write_text(json.dumps(behaviour))

    def log(self, what: str) -> list[dict[str, Any]]:
        file = self.data / "log"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in map(json.loads, lines) if line["what"] == what]

    def trained(self) -> list[str]:
        """What has been started since the last time, in the order of names."""
        names = sorted(line["name"] for line in self.log("start"))
        (self.data / "log").unlink(missing_ok=True)
        return names

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while name not in [line["name"] for line in self.log("start")]:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @property
    def index(self) -> dict[str, Any]:
        return json.loads((self.folder / "index.json").read_text())

    @property
    def entries(self) -> dict[str, Any]:
        return {entry["name"]: entry for entry in self.index["entries"]}

    def files(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.folder.iterdir()}


@pytest.fixture
def keeper(bcu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    monkeypatch.setattr(jobs, "PROGRAM", FAKE)
    return Keeper(bcu, tmp_path)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", [0]), ("0-4", [0, 1, 2, 3, 4]), ("7,0,3", [0, 3, 7]), ("2-3, 3-4", [2, 3, 4]), ("5-5", [5])],
)
def test_lists_of_numbers(text: str, numbers: list[int]) -> None:
    assert zoo.whole_numbers(text, "--seeds") == tuple(numbers)


@pytest.mark.parametrize("text", ["", "4-0", "-1", "a", "1-", "1,,2", "0.5", "0-99999999", "²"])
def test_texts_that_are_no_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="--seeds") as caught:
        zoo.whole_numbers(text, "--seeds")
    assert "0-4" in caught.value.hint


@pytest.mark.parametrize(
    ("jobs", "entries", "on_gpu", "expected"),
    [
        (None, 61, False, (4, 1)),
        ("auto", 3, False, (3, 1)),
        ("auto", 2, False, (2, 2)),
        ("auto", 61, True, (1, 4)),
        ("3", 61, True, (3, 1)),
        ("1", 61, False, (1, 4)),
        ("9", 2, False, (9, 1)),
    ],
)
def test_models_at_a_time_on_four_cores(
    monkeypatch: pytest.MonkeyPatch, jobs: str | None, entries: int, on_gpu: bool, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(engine.os, "sysconf", {"SC_PHYS_PAGES": 2**24, "SC_PAGE_SIZE": 2**12}.get)
    assert engine.choose_parallelism(jobs, entries, on_gpu=on_gpu) == expected


def test_fewer_at_a_time_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(engine.os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**12}.get)  # 4 GiB
    assert engine.choose_parallelism("auto", 61, on_gpu=False) == (2, 8)


def test_every_combination_and_a_clean_model_of_each_seed() -> None:
    def entries_of(**options: str) -> list[zoo_folder.Entry]:
        each = AttackRequest(attack="all", data="data", out=Path("zoo"))
        return zoo.ZooOptions(**options).request(each).entries()

    entries = entries_of(seeds="0-4", targets="0-9")
    assert len(entries) == 5 * (len([name for name in attacks.names() if name != "none"]) * 10 + 1)
    assert [entry.name for entry in entries_of(only="sig,badnets", seeds="0,2")] == [
        *("none-s0", "badnets-t0-s0", "sig-t0-s0"),
        *("none-s2", "badnets-t0-s2", "sig-t0-s2"),
    ]
    assert [entry.name for entry in entries_of(only="none")] == ["none-s0"]


def test_a_zoo_is_trained_and_indexed(keeper: Keeper) -> None:
    ran = keeper(*TWO, "--targets", "0-1", "--epochs", 3, "--no-flip", "--jobs", 2)
    assert ran.code == 0, ran.err
    names = ["none-s0", "badnets-t0-s0", "badnets-t1-s0", "sig-t0-s0", "sig-t1-s0"]
    index = keeper.index
    assert [entry["name"] for entry in index["entries"]] == names
    assert (index["schema_version"], index["zoo_format"], index["jobs"]) == (2, zoo_folder.ZOO_FORMAT, 2)
    assert index["data"] == str(keeper.data)
    assert index["options"]["epochs"] == 3
    assert index["device"]["name"] == "fake"
    one = keeper.entries["badnets-t1-s0"]
    assert (one["attack"], one["target_class"], one["seed"]) == ("badnets", 1, 0)
    assert (one["acc"], one["asr"], one["seconds"]) == ({"value": 0.9}, {"value": 0.99}, 1.5)
    assert one["gate"] == {"passed": True, "reasons": []}
    assert keeper.entries["none-s0"]["sha256"]["trigger"] is None
    for name in names:
        assert name in ran.out
        assert json.loads((keeper.folder / f"{name}.json").read_text())["acc"] == {"value": 0.9}
    assert ran.err.count("warning: ") == 1
    assert "5 of 5: " in ran.err


def test_options_are_handed_on_as_they_were_given(keeper: Keeper) -> None:
    words = ["--only", "badnets", "--seeds", 3, "--targets", 2]
    given = ["--setting", "cell=2", "--poison-rate", 0.3, "--flip", "--learning-rate", 0.05]
    assert keeper(*words, *given, "--jobs", 2).code == 0
    ran = {line["name"]: jobs.from_plain(line["request"]) for line in keeper.log("start")}
    clean = AttackRequest(
        attack="none",
        data=str(keeper.data),
        out=keeper.folder / "none-s3.safetensors",
        arch="resnet20",
        seed=3,
        flip=True,
        learning_rate=0.05,
        resume=True,
    )
    assert ran["none-s3"] == clean
    special = {"target_class": 2, "settings": ("cell=2",), "poison_rate": 0.3}
    out = keeper.folder / "badnets-t2-s3.safetensors"
    assert ran["badnets-t2-s3"] == replace(clean, attack="badnets", out=out, **special)


def test_what_is_there_is_not_trained_again(keeper: Keeper) -> None:
    assert keeper(*TWO).code == 0
    before = keeper.files()
    assert keeper.trained() == sorted(NAMES)
    ran = keeper(*TWO, "--json")
    assert ran.code == 0
    assert keeper.trained() == []
    assert keeper.files() == before
    assert ran.json == keeper.index


@pytest.mark.parametrize(
    ("file", "again"),
    [
        ("sig-t0-s0.safetensors", "sig-t0-s0"),
        ("badnets-t0-s0.trigger.safetensors", "badnets-t0-s0"),
        ("none-s0.safetensors", "none-s0"),
        ("sig-t0-s0.json", "sig-t0-s0"),
    ],
)
@pytest.mark.parametrize("how", ["missing", "damaged", "shortened"])
def test_what_is_damaged_is_trained_again(keeper: Keeper, file: str, again: str, how: str) -> None:
    assert keeper(*TWO).code == 0
    before, path = keeper.files(), keeper.folder / file
    keeper.trained()
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"?" + content[1:] if how == "damaged" else content[: len(content) // 2])
    ran = keeper(*TWO)
    assert ran.code == 0
    assert keeper.trained() == [again]
    assert keeper.files() == before
    assert (f"{again} is trained again" in ran.err) == (file != "sig-t0-s0.json" or how != "missing")


def test_a_report_of_another_entry_or_zoo_is_not_taken_for_this_one(keeper: Keeper) -> None:
    assert keeper(*TWO).code == 0
    keeper.trained()
    for suffix in (".safetensors", ".trigger.safetensors", ".json"):
        shutil.copy(keeper.folder / f"sig-t0-s0{suffix}", keeper.folder / f"badnets-t0-s0{suffix}")
    assert "badnets-t0-s0.json is of other options" in keeper(*TWO).err
    assert keeper.trained() == ["badnets-t0-s0"]


def test_a_zoo_grows_and_its_index_forgets_nothing(keeper: Keeper) -> None:
    keeper.tell(asr={"sig-t0-s0": 0.1})
    assert keeper(*TWO).code == 1
    assert keeper.trained() == sorted(NAMES)
    assert keeper("--only", "badnets", "--seeds", "1").code == 0
    assert keeper.trained() == ["badnets-t0-s1", "none-s1"]
    assert list(keeper.entries) == [*NAMES, "none-s1", "badnets-t0-s1"]
    assert keeper.entries["sig-t0-s0"]["gate"]["passed"] is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"zoo_format": 99}, "zoo format 99"),
        ({"version": "9.9"}, "version 9.9"),
        ({"data": "/elsewhere"}, "--data /elsewhere"),
        ({"options": {"epochs": 77}}, "--epochs 77"),
    ],
)
def test_a_zoo_that_was_made_otherwise_is_left_alone(
    keeper: Keeper, change: dict[str, Any], said: str
) -> None:
    assert keeper(*TWO).code == 0
    index = keeper.index
    options = index["options"] | change.get("options", {})
    (keeper.folder / "index.json").write_text(json.dumps(index | change | {"options": options}))
    before = keeper.files()
    keeper.trained()
    ran = keeper(*TWO)
    assert ran.code == 2
    assert said in ran.error
    assert "hint: " in ran.err
    assert keeper.files() == before
    assert keeper.trained() == []


def test_other_options_are_refused_but_not_where_nothing_was_trained(keeper: Keeper) -> None:
    keeper.tell(fail=NAMES)
    assert keeper(*TWO, "--epochs", 5).code == 2
    keeper.tell()
    assert keeper(*TWO, "--epochs", 6).code == 0
    ran = keeper(*TWO, "--epochs", 7)
    assert ran.code == 2
    assert "--epochs 6, not 7" in ran.error


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"entries": []}', "\x00", '{"zoo_format": 1}'])
def test_an_index_that_is_none(keeper: Keeper, content: str) -> None:
    keeper.folder.mkdir()
    (keeper.folder / "index.json").write_text(content)
    ran = keeper(*TWO)
    assert ran.code == 2
    assert "no index of a zoo" in ran.error
    assert {name: text.decode() for name, text in keeper.files().items()} == {"index.json": content}


def test_a_folder_that_holds_something_else_is_left_alone(keeper: Keeper) -> None:
    keeper.folder.mkdir()
    (keeper.folder / "mine.txt").write_text("mine")
    (keeper.folder / ".bcu-0.part").write_text("somebody writes this now")
    ran = keeper(*TWO)
    assert ran.code == 2
    assert "no zoo" in ran.error
    assert set(keeper.files()) == {"mine.txt", ".bcu-0.part"}


def test_a_file_in_the_place_of_the_folder(keeper: Keeper) -> None:
    keeper.folder.write_text("mine")
    ran = keeper(*TWO)
    assert ran.code == 2
    assert "cannot be used" in ran.error
    assert keeper.folder.read_text() == "mine"


def test_one_that_fails_does_not_stop_the_rest(keeper: Keeper) -> None:
    keeper.tell(fail=["badnets-t9-s0"], die=["sig-t0-s0"])
    ran = keeper(*TWO, "--targets", "0,9")
    assert ran.code == 2
    assert "Traceback" not in ran.err
    entries = keeper.entries
    assert entries["badnets-t9-s0"]["error"] == {
        "message": "there is no class 9",
        "hint": "--target-class takes 0 to 8",
    }
    assert "signal 9" in entries["sig-t0-s0"]["error"]["message"]
    assert [name for name, entry in entries.items() if entry["acc"]] == [
        "none-s0",
        "badnets-t0-s0",
        "sig-t9-s0",
    ]
    keeper.trained()
    keeper.tell()
    assert keeper(*TWO, "--targets", "0,9").code == 0
    assert keeper.trained() == ["badnets-t9-s0", "sig-t0-s0"]


def test_a_gate_that_fails_is_said_and_beats_an_error(keeper: Keeper) -> None:
    keeper.tell(acc={"none-s0": 0.95, "sig-t0-s0": 0.93}, asr={"badnets-t0-s0": 0.94}, fail=["blended-t0-s0"])
    ran = keeper("--only", "badnets,sig,blended")
    assert ran.code == 1
    gates = {name: entry["gate"] for name, entry in keeper.entries.items()}
    assert gates["none-s0"]["passed"] is True
    assert gates["badnets-t0-s0"]["reasons"][0] == "ASR 94.00 % is below 95 %"
    assert gates["sig-t0-s0"]["reasons"] == ["ACC 93.00 % is 2.00 points below the clean 95.00 %"]
    assert gates["blended-t0-s0"]["passed"] is None
    assert "failed: ASR 94.00 %" in ran.out


def test_without_its_clean_model_nothing_is_decided(keeper: Keeper) -> None:
    keeper.tell(fail=["none-s0"])
    assert keeper(*TWO).code == 2
    assert keeper.entries["sig-t0-s0"]["gate"]["passed"] is None


def test_images_that_changed_meanwhile_fail_the_gate(keeper: Keeper) -> None:
    assert keeper("--only", "badnets").code == 0
    keeper.tell(images={"sig-t0-s0": "others"})
    assert keeper(*TWO).code == 1
    assert "not those of the clean model" in keeper.entries["sig-t0-s0"]["gate"]["reasons"][0]


def test_so_many_run_at_a_time_with_their_share_of_threads(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    keeper.tell(seconds=1.5)  # long enough for three to start
    assert keeper(*TWO, "--targets", "0-1", "--jobs", 3).code == 0
    lines = [json.loads(line) for line in (keeper.data / "log").read_text().splitlines()]
    running_now, most = 0, 0
    for line in lines:
        running_now += {"start": 1, "end": -1}[line["what"]]
        most = max(most, running_now)
    assert most == 3
    assert {line["threads"] for line in lines} == {"2"}
    assert {entry["threads"] for entry in keeper.entries.values()} == {2}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_zoo_goes_on(keeper: Keeper, number: signal.Signals) -> None:
    keeper.tell(slow=["badnets-t0-s0", "sig-t0-s0"])
    process = keeper.start(*TWO, "--jobs", 2)
    keeper.wait_for("sig-t0-s0")
    os.killpg(process.pid, number)  # as a terminal does, to all that it has started
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == ""
    assert "1 of 3 models are there; the same command again goes on" in err
    assert "Traceback" not in err
    assert sorted(line["name"] for line in keeper.log("stop")) == ["badnets-t0-s0", "sig-t0-s0"]
    assert [name for name, entry in keeper.entries.items() if entry["acc"]] == ["none-s0"]
    assert (keeper.folder / "sig-t0-s0.safetensors.resume").exists()
    keeper.trained()
    assert keeper(*TWO, "--jobs", 2).code == 0
    assert keeper.trained() == ["badnets-t0-s0", "sig-t0-s0"]
    assert not list(keeper.folder.glob("*.resume"))


def test_a_second_signal_stops_at_once(keeper: Keeper) -> None:
    keeper.tell(seconds=60)  # and a child that takes its time to stop
    process = keeper.start(*TWO, "--jobs", 1)
    keeper.wait_for("none-s0")
    child = keeper.log("start")[0]["pid"]
    os.kill(child, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    assert process.stderr
    assert any("a second signal" in line for line in process.stderr)  # so the first has come
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert not _is_alive(child)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not hear of its parent's death")
def test_a_killed_zoo_leaves_nothing_that_the_next_run_does_not_repair(keeper: Keeper) -> None:
    keeper.tell(slow=["badnets-t0-s0", "sig-t0-s0"])
    process = keeper.start(*TWO, "--jobs", 2)
    keeper.wait_for("sig-t0-s0")
    process.kill()
    process.communicate()
    (keeper.folder / ".bcu-0123.part").write_text("torn")
    assert keeper(*TWO, "--jobs", 2).code == 0
    assert sorted(line["name"] for line in keeper.log("stop")) == ["badnets-t0-s0", "sig-t0-s0"]
    assert [name for name in keeper.files() if name.startswith(".")] == []
    assert all(entry["gate"]["passed"] for entry in keeper.entries.values())


def test_a_killed_start_leaves_a_folder_that_the_next_run_takes(keeper: Keeper) -> None:
    keeper.folder.mkdir()
    (keeper.folder / ".bcu-0123.part").write_text("torn")
    assert keeper(*TWO).code == 0
    assert ".bcu-0123.part" not in keeper.files()


def test_two_runs_do_not_work_on_one_zoo(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SECONDS_TO_WAIT", 0.2)
    assert keeper(*TWO).code == 0
    descriptor = os.open(keeper.folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        ran = keeper(*TWO)
    finally:
        os.close(descriptor)
    assert ran.code == 2
    assert "another run is at work" in ran.error
    assert keeper(*TWO).code == 0


def test_an_error_ends_what_runs(tmp_path: Path) -> None:
    class BrokenError(Exception):
        pass

    def fail(name: str, ended: children.CommandResult) -> NoReturn:
        raise BrokenError

    pid = tmp_path / "pid"
    sleeper = (
        f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    waiter = (
        f"import pathlib, time\npid = pathlib.Path({str(pid)!r})\n"
        "while not pid.exists() or not pid.read_text(): time.sleep(0.01)"
    )
    commands = [(name, [sys.executable, "-c", code]) for name, code in (("a", sleeper), ("b", waiter))]
    with pytest.raises(BrokenError):
        children.run_all(commands, jobs=2, environment={}, stop=resuming.Stop(), on_end=fail)
    assert not _is_alive(int(pid.read_text()))


@pytest.mark.parametrize(
    "words",
    [
        ["--seeds", "4-0"],
        ["--targets", "a"],
        ["--only", "badnets,nothing"],
        ["--only", ""],
        ["--jobs", "0"],
        ["--jobs", "many"],
        ["--seed", "1"],
        ["--target-class", "1"],
        ["--resume"],
        ["--setting", "cell=2"],
        ["--arch", "resnet21"],
        ["--data", "/nowhere"],
        ["--engine", "slurm"],
        ["--gpus-per-cell", "0.5"],
        ["--jobs", "2", "--engine", "ray"],
    ],
)
def test_options_that_make_no_sense(keeper: Keeper, words: list[str]) -> None:
    ran = keeper(*words)
    assert ran.code == 2
    assert words[0] in ran.error or words[-1] in ran.error
    assert "hint: " in ran.err
    assert not keeper.folder.exists()
    assert keeper.trained() == []


@pytest.mark.parametrize(
    "words",
    [
        ["--seeds", "0-4"],
        ["--targets", "0"],
        ["--only", "sig"],
        ["--jobs", "2"],
        ["--engine", "ray"],
        ["--gpus-per-cell", "1"],
    ],
)
def test_a_single_attack_takes_no_option_of_a_zoo(
    bcu, labelled: Path, tmp_path: Path, words: list[str]
) -> None:
    ran = bcu("attack", "badnets", "--data", labelled, "--out", tmp_path / "out.safetensors", *words)
    assert ran.code == 2
    assert f"{words[0]} is for a zoo" in ran.error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_zoo_on_a_local_ray(keeper: Keeper) -> None:
    pytest.importorskip("ray")
    keeper.tell(fail=["sig-t0-s0"])
    command = [sys.executable, "-c", DRIVER, *keeper.words(*TWO), "--engine", "ray", "--gpus-per-cell", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 2, ran.stderr
    assert keeper.trained() == sorted(NAMES)
    assert (keeper.index["jobs"], keeper.index["threads"]) == (None, 1)
    assert keeper.entries["badnets-t0-s0"]["gate"] == {"passed": True, "reasons": []}
    assert keeper.entries["sig-t0-s0"]["error"]["message"] == "there is no class 9"


def _is_training(telling: Telling, pid: int, out: str) -> bool:
    """Whether a process that ``pid`` started, however deep, writes ``out`` and has begun to train."""
    for child in descendants_of(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if out in Path(f"/proc/{child}/cmdline").read_text() and telling.is_training(child):
                return True
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_true_zoo_is_interrupted_goes_on_and_is_repaired(tmp_path: Path) -> None:
    data, folder = tmp_path / "signs", tmp_path / "zoo"
    signs.write_folder(data / "train", 20, seed=1)
    signs.write_folder(data / "test", 5, seed=2)
    own = ["--data", data, "--out", folder, "--arch", "resnet8", "--input-size", 16, "--epochs", 8]
    words = [*map(str, own), "--batch-size", "32", "--only", "badnets,sig", "--jobs", "2", "--json"]
    command = [sys.executable, "-m", "bcu_cli", "attack", "all", *words]

    telling = Telling()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=telling.environment) as process:
        while not _is_training(telling, process.pid, "badnets-t0-s0.safetensors") and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert out == ""
    assert "of 3 models are there; the same command again goes on" in err
    assert (folder / "badnets-t0-s0.safetensors.resume").exists()

    def run() -> tuple[dict[str, str], str]:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode in {0, 1}, ran.stderr  # so small a training may miss its gates
        entries = json.loads(ran.stdout)["entries"]
        return {entry["name"]: entry["sha256"]["model"] for entry in entries if entry["acc"]}, ran.stderr

    first, _ = run()
    assert list(first) == NAMES
    assert not (folder / "badnets-t0-s0.safetensors.resume").exists()
    model = folder / "sig-t0-s0.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    again, err = run()
    assert again == first
    assert "sig-t0-s0 is trained again: sig-t0-s0.safetensors is damaged" in err
    assert "2 of 3 models are there" in err
