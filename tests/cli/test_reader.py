"""The process that looks at files for ``bcu inspect``: whatever a file does to it, the others are read."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bcu_cli.checkpoints.shards import size_with_parts
from bcu_cli.limits import is_lack_of_memory
from bcu_cli.models import build
from bcu_cli.workflows import reader
from bcu_cli.workflows.inspection import inspect_file

PROGRAM = """
import ctypes, json, os, signal, sys, time
sys.path[:] = json.loads(sys.argv[2])
from bcu_cli.workflows import reader
look = reader._look

def break_by_name(path, arch):
    name = path.stem
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "abort":
        ctypes.CDLL(None).abort()
    if name == "exit":
        os._exit(3)
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hang":
        os.mkdir(path.with_name(f"process-{os.getpid()}"))
        time.sleep(1000)
    if name == "memory":
        bytearray(3 * 2**29)
    if name == "write":
        path.with_name("written").write_bytes(b"x")
    if name == "long":
        return {"path": str(path), "problem": None, "text": "a" * 2**21}
    if name == "other":
        return {"path": "/another/file", "problem": None}
    print("this is no answer")
    return look(path, arch)

reader._look = break_by_name
reader.serve(int(sys.argv[1]))
"""
"""The process as it is, but for files with these names."""

PLAIN = reader._PROGRAM

EXPECTED = {
    "abort": ("reader-crashed", "it ended by SIGABRT"),
    "crash": ("reader-crashed", "it ended by SIGSEGV"),
    "exit": ("reader-crashed", "it ended with code 3"),
    "killed": ("reader-out-of-memory", "memory"),
    "long": ("reader-crashed", "too long"),
    "memory": ("reader-out-of-memory", "memory"),
    "other": ("reader-crashed", "makes no sense"),
    "write": ("reader-crashed", "File too large"),
}


class _Runs:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.fixture
def breakable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_PROGRAM", PROGRAM)
    monkeypatch.setattr(reader, "_MEMORY", 2**30)
    monkeypatch.setattr(reader, "_MOST_BYTES", 2**20)


def problems(report: dict) -> dict[str, tuple[str, str]]:
    found = {Path(file["path"]).stem: file["problem"] for file in report["files"]}
    return {name: (problem["rule"], problem["message"]) for name, problem in found.items() if problem}


@pytest.mark.usefixtures("breakable")
def test_a_file_that_breaks_the_process_is_undecided_and_the_others_are_read(bcu, tmp_path: Path) -> None:
    state = build("resnet8", num_classes=10).state_dict()
    for name in EXPECTED:
        (tmp_path / f"{name}.pt").write_bytes(b"\x80\x02")
    save_file(state, tmp_path / "good.safetensors")
    (tmp_path / "unsafe.pt").write_bytes(pickle.dumps(_Runs()))
    ran = bcu("inspect", tmp_path, "--json")
    assert ran.code == 1  # a finding beats what could not be read
    found = problems(ran.json)
    assert found.keys() == EXPECTED.keys()
    for name, (rule, part) in EXPECTED.items():
        assert (found[name][0], part in found[name][1]) == (rule, True), found[name]
    safe = {Path(file["path"]).stem: file["safe"] for file in ran.json["files"]}
    assert safe == dict.fromkeys(EXPECTED) | {"good": True, "unsafe": False}
    assert not (tmp_path / "written").exists() or (tmp_path / "written").stat().st_size == 0
    (tmp_path / "unsafe.pt").unlink()
    (tmp_path / "good.safetensors").unlink()
    ran = bcu("inspect", tmp_path, "--format", "sarif")
    assert ran.code == 2
    (run,) = ran.json["runs"]
    rules = [note["descriptor"]["id"] for note in run["invocations"][0]["toolExecutionNotifications"]]
    assert sorted(rules) == sorted(rule for rule, _ in EXPECTED.values())


@pytest.mark.usefixtures("breakable")
def test_a_file_that_takes_too_long_is_undecided(bcu, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reader, "_SECONDS", 6.0)
    (tmp_path / "hang.pt").write_bytes(b"\x80\x02")
    (tmp_path / "unsafe.pt").write_bytes(pickle.dumps(_Runs()))
    ran = bcu("inspect", tmp_path, "--json")
    assert ran.code == 1
    assert problems(ran.json)["hang"] == (
        "reader-timeout",
        f"{tmp_path / 'hang.pt'} took more than 6 seconds to look at",
    )
    (folder,) = tmp_path.glob("process-*")
    assert is_gone(folder)


def is_gone(folder: Path) -> bool:
    """Whether the process that made a folder has ended; a moment is given for it."""
    stat = Path("/proc") / folder.name.removeprefix("process-") / "stat"
    for _ in range(100):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_the_process_ends_with_its_parent(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    (tmp_path / "hang.pt").write_bytes(b"\x80\x02")
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # & ignores it
        "from bcu_cli.workflows import reader; reader._PROGRAM = sys.argv[2]; "
        "from bcu_cli.cli.app import run; sys.exit(run(['inspect', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path), PROGRAM]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as parent:
        try:
            deadline = time.monotonic() + 60
            while not (folders := list(tmp_path.glob("process-*"))):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            parent.send_signal(sent)
            _, err = parent.communicate(timeout=30)
        finally:
            parent.kill()
    assert parent.returncode == code
    assert b"Traceback" not in err
    assert is_gone(folders[0])


def test_what_is_no_fault_of_the_file_ends_the_command(tmp_path: Path, monkeypatch) -> None:
    from bcu_cli.errors import BcuError

    program = reader._PROGRAM.replace(
        "reader.serve",
        "from bcu_cli.errors import UsageError\n"
        "def look(path, arch):\n    raise UsageError('no such --arch', arch)\n"
        "reader._look = look\nreader.serve",
    )
    monkeypatch.setattr(reader, "_PROGRAM", program)
    with reader.Reader() as one, pytest.raises(BcuError, match="no such --arch") as error:
        one.inspect(tmp_path, "the hint")
    assert error.value.hint == "the hint"


def test_a_faulty_installation_is_no_fault_of_the_file(tmp_path: Path, monkeypatch) -> None:
    from bcu_cli.errors import BcuError

    def program(error: str) -> str:
        look = f"def look(path, arch):\n    raise {error}\nreader._look = look\nreader.serve"
        return PLAIN.replace("reader.serve", look)

    for error, words in {
        "RuntimeError('operator torchvision::nms does not exist')": "not built for each other",
        "ModuleNotFoundError('no', name='timm')": "package timm is not installed",
    }.items():
        monkeypatch.setattr(reader, "_PROGRAM", program(error))
        with reader.Reader() as one, pytest.raises(BcuError, match=words) as raised:
            one.inspect(tmp_path)
        assert "pip install" in raised.value.hint


def test_it_says_the_same_as_looking_in_this_process(tmp_path: Path) -> None:
    state = build("resnet8", num_classes=10).state_dict()
    state["fc.weight"][0, 0] = float("nan")
    name = os.fsdecode(b"m\xff.pt")
    torch.save({"net": state, "epoch": 3, "best": float("inf")}, tmp_path / name)
    with reader.Reader() as one:
        seen = one.inspect(tmp_path / name)
    assert seen == json.loads(json.dumps(inspect_file(tmp_path / name).document()))
    assert seen["problem"]["rule"] == "not-finite"


def test_modules_are_never_taken_from_the_folder_it_runs_in(tmp_path: Path) -> None:
    for name in ("torch", "json", "safetensors", "resource"):
        (tmp_path / f"{name}.py").write_text("import os; os.mkdir('canary')")
    save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / "m.safetensors")
    code = (
        "import sys; from bcu_cli.cli.app import run; sys.exit(run(['inspect', 'm.safetensors', '--json']))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(ran.stdout)["files"][0]["safe"] is True, ran.stderr
    assert not (tmp_path / "canary").exists()


def test_a_lack_of_memory_is_no_damage() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.zeros(2**50, dtype=torch.uint8)
    assert is_lack_of_memory(error.value)
    try:
        raise ValueError("damaged") from error.value
    except ValueError as damaged:
        assert is_lack_of_memory(damaged)
    first, second = ValueError("damaged"), ValueError("because")
    first.__cause__, second.__cause__ = second, first
    assert not is_lack_of_memory(first)


def test_the_size_of_an_index_is_that_of_its_files(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    assert size_with_parts(index) == index.stat().st_size + (tmp_path / "a.safetensors").stat().st_size
    assert size_with_parts(tmp_path / "missing.pt") == 0
