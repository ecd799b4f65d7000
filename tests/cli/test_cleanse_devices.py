"""``bcu cleanse --devices 2``: two processes, on the CPU by gloo, started by torch's own launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import Ran, Telling, bcu_process, children_of
from safetensors.torch import save_file

from bcu_cli.models import build

pytestmark = pytest.mark.slow
SHORT = ["--method", "bcu", "--epochs", 4, "--batch-size", 32, "--precision", "fp32", "--max-images", 160]
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.fixture(scope="module")
def whole(untrained: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, bytes]:
    """A run that nothing happens to, and what it writes."""
    out = tmp_path_factory.mktemp("whole") / "out.safetensors"
    ran = bcu_process(
        "cleanse", untrained, "--images", photos, "--out", out, *SHORT, "--devices", 2, "--json"
    )
    assert ran.code == 0, ran.err
    assert sorted(file.name for file in out.parent.iterdir()) == [
        "out.safetensors",
        "out.safetensors.intoto.json",
    ]
    return ran, out.read_bytes()


def test_one_process_reports_and_warns_and_all_of_them_count(whole: tuple[Ran, bytes]) -> None:
    ran, _ = whole
    report = ran.json  # one document, and nothing else
    assert report["device"]["number"] == 2
    assert report["training"][0]["images"] == 4 * 144
    assert report["agreement"]["after"]["of"] == 16
    assert ran.err.count("training images are few") == 1
    others = [
        line for line in ran.err.splitlines() if not line.startswith(("warning: ", "model.safetensors"))
    ]
    assert others == []


def test_a_bad_verdict_is_said_once_and_is_the_exit_code(
    photos: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first process alone ends with it, the others in good order."""
    small = tmp_path_factory.mktemp("small") / "model.safetensors"
    torch.manual_seed(0)
    save_file(build("resnet8", num_classes=9).state_dict(), small)
    words = [
        "--images",
        photos,
        "--epochs",
        1,
        "--batch-size",
        32,
        "--quick",
        "--out",
        tmp_path / "out.safetensors",
    ]
    words += ["--mean", 0.5, "--std", 0.5, "--input-size", 16]
    few_steps = Telling().environment | {"BCU_FEW_STEPS": "1"}
    ran = bcu_process("cleanse", small, *words, "--devices", 2, "--json", env=few_steps)
    assert ran.json["training"][0]["images"] < 32 * 10  # each search is short
    word = ran.json["verdict"]["word"]
    assert (word, ran.code) in {("not cleansed", 1), ("could not tell", 2)}
    assert ran.error.startswith(f"error: {word}: ")
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors.resume"]


class Running:
    """A run of two processes that has begun to train."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "bcu_cli", "cleanse", *map(str, words), "--devices", "2"]
        telling = Telling()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(
            command, **pipes, text=True, start_new_session=True, env=telling.environment
        )
        deadline = time.monotonic() + 120
        while self.process.poll() is None and time.monotonic() < deadline:
            self.ranks = ranks_of(self.process.pid)
            if len(self.ranks) == 2 and all(map(telling.is_training, self.ranks.values())):
                return
            time.sleep(0.02)
        raise AssertionError(self.process.communicate())

    def end(self) -> Ran:
        out, err = self.process.communicate(timeout=60)
        assert not any(Path(f"/proc/{pid}").exists() for pid in self.ranks.values())
        assert "Traceback" not in err
        return Ran(self.process.returncode, out, err)


def ranks_of(pid: int) -> dict[int, int]:
    """The number of the process of each rank that a process, or one that it supervises, has started."""
    found = {}
    for child in [each for launcher in children_of(pid) for each in children_of(launcher)]:
        try:
            variables = Path(f"/proc/{child}/environ").read_text().split("\0")
        except OSError:
            continue  # it has ended
        found |= {int(each[5:]): child for each in variables if each.startswith("RANK=")}
    return found


@needs_proc
def test_a_process_that_dies_ends_the_run_in_one_line_and_one_device_can_go_on(
    bcu, untrained: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    words = [untrained, "--images", photos, "--out", out, *SHORT, "--epochs", 10, "--max-images", 320]
    run = Running(*words, "--json")
    time.sleep(0.3)  # into the training
    os.kill(run.ranks[1], signal.SIGKILL)
    ran = run.end()
    assert ran.code == 2
    assert ran.error == "error: process 1 of 2 was ended by signal 9 (SIGKILL)"
    assert "hint: repeat the command with --resume to continue from the last saved state" in ran.err
    assert ran.json["error"]["message"] == ran.error.removeprefix("error: ")
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors.resume"]
    state = Path(f"{out}.resume").read_bytes()
    for another in (["--seed", 1], ["--mean", 0.4, "--std", 0.25]):
        other = bcu("cleanse", *words, "--resume", *another)
        assert "was left by a run with other options" in other.error
    assert Path(f"{out}.resume").read_bytes() == state
    resumed = bcu("cleanse", *words, "--resume")
    assert resumed.code == 0, resumed.err
    assert "starting over" not in resumed.err
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "out.safetensors",
        "out.safetensors.intoto.json",
    ]


@needs_proc
def test_ctrl_c_stops_all_in_the_same_step_and_the_run_goes_on_to_the_same_bytes(
    untrained: Path, photos: Path, tmp_path: Path, whole: tuple[Ran, bytes]
) -> None:
    out = tmp_path / "out.safetensors"
    words = [untrained, "--images", photos, "--out", out, *SHORT]
    run = Running(*words)
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
    ran = run.end()
    assert ran.code == 130, ran.err
    assert ran.err.count("--resume continues from there") == 1
    assert ran.err.count("interrupted") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors.resume"]
    resumed = bcu_process("cleanse", *words, "--resume", "--devices", 2)
    assert resumed.code == 0, resumed.err
    assert resumed.err.count("resuming after step") == 1
    assert out.read_bytes() == whole[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "out.safetensors",
        "out.safetensors.intoto.json",
    ]


def test_an_error_is_said_once(photos: Path, tmp_path: Path) -> None:
    missing, out = tmp_path / "missing.safetensors", tmp_path / "out.safetensors"
    ran = bcu_process("cleanse", missing, "--images", photos, "--out", out, "--devices", 2, "--json")
    assert ran.code == 2
    assert ran.error == f"error: {missing} does not exist"
    assert ran.json["error"]["message"] == f"{missing} does not exist"


@pytest.mark.parametrize("method", ["clp", "mcr", "i-bau", "anp", "fp"])
def test_methods_that_run_on_one_device_say_so(
    bcu, untrained: Path, labelled: Path, tmp_path: Path, method: str
) -> None:
    words = ["--images", labelled / "train", "--out", tmp_path / "x.safetensors", "--method", method]
    ran = bcu("cleanse", untrained, *words, "--devices", 2)
    assert ran.code == 2
    assert ran.error == f"error: --method {method} runs on one device"
    assert "hint: auto, bcu, ft, nad train on several" in ran.err
