"""What the tool is for, end to end on the built-in road signs: attack, inspect, cleanse, evaluate."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import torch
from helpers import Telling, bcu_process
from safetensors import safe_open
from safetensors.torch import load_file

from bcu_cli.images.sources import signs

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ["--method", "bcu", "--epochs", 1, "--batch-size", 32, "--max-images", 96]
WHOLE = ["--method", "bcu", "--epochs", 1, "--batch-size", 64]


def test_the_backdoor_is_there_then_gone_and_the_rest_stays(
    bcu, backdoored: Path, photos: Path, labelled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "clean.safetensors"
    method = ["--method", "bcu", "--strength", 5, "--learning-rate", 0.1, "--batch-size", 20, "--epochs", 12]
    report = bcu("cleanse", backdoored, "--images", photos, "--out", out, *method, "--json").json
    assert report["output"]["format"] == "safetensors"
    assert report["agreement"]["after"]["value"] > report["agreement"]["before_training"]["value"]

    trigger = backdoored.with_name("bad.trigger.safetensors")
    ran = bcu("evaluate", backdoored, out, "--data", labelled, "--trigger", trigger, "--json")
    before, after = ran.json["models"]
    assert before["acc"]["value"] > 0.9
    assert before["asr"]["value"] > 0.9
    assert before["asr"]["of"] == 7 * 25
    assert after["asr"]["value"] < 0.2
    assert after["acc"]["value"] > before["acc"]["value"] - 0.1

    table = bcu("evaluate", backdoored, out, "--data", labelled, "--trigger", trigger)
    assert table.code == 0
    assert "bad.safetensors" in table.out
    assert "clean.safetensors" in table.out


def own_trigger(folder: Path) -> list[object]:
    """The fixture's trigger, a checkerboard of 3x3 pixels, as an image and a mask."""
    from PIL import Image

    from bcu_cli.triggers.badnets import PATTERN

    picture, mask = Image.new("L", (32, 32)), Image.new("L", (32, 32))
    for y in range(3):
        for x in range(3):
            picture.putpixel((29 + x, 29 + y), round(255 * PATTERN[y][x]))
            mask.putpixel((29 + x, 29 + y), 255)
    picture.save(folder / "t.png")
    mask.save(folder / "m.png")
    return ["--trigger-image", folder / "t.png", "--trigger-mask", folder / "m.png"]


def test_without_a_target_class_the_worst_one_is_found(
    bcu, backdoored: Path, labelled: Path, tmp_path: Path
) -> None:
    own = own_trigger(tmp_path)
    ran = bcu("evaluate", backdoored, "--data", labelled, *own, "--json")
    trigger = ran.json["models"][0]["trigger"]
    assert (trigger["target_class"], trigger["target_name"], trigger["target_class_given"]) == (
        0,
        "ahead-only",
        False,
    )


def test_the_output_takes_the_place_of_the_original(
    bcu, untrained: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    assert bcu("cleanse", untrained, "--images", photos, "--out", out, *QUICK).code == 0
    before, after = load_file(untrained), load_file(out)
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert (tensor.shape, tensor.dtype) == (after[name].shape, after[name].dtype)
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])


def test_the_report_says_what_was_done(bcu, untrained: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    ran = bcu("cleanse", untrained, "--images", photos, "--out", out, "--seed", 3, *WHOLE, "--json")
    report = ran.json
    assert report["schema_version"] == 2
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0] or report["versions"]["torch"]
    assert report["method"] == "bcu"
    assert "CVPR 2023" in report["paper"]
    assert report["options"]["seed"] == 3
    assert (report["images"]["found"], report["images"]["used"], report["images"]["held_out"]) == (
        320,
        288,
        32,
    )
    assert report["model"]["architecture"]["name"] == "resnet8"
    assert report["model"]["preprocessing"]["source"] == "metadata"
    assert len(report["details"]["reinitialised"]) == 10
    assert report["seconds"]["cleansing"] > 0
    assert report["peak_memory"]["process_bytes"] > 0
    import hashlib

    for path, entry in ((untrained, report["model"]), (out, report["output"])):
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_runs_with_one_seed_write_the_same_bytes(
    bcu, untrained: Path, photos: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for out, seed in zip(outs, (1, 1, 2), strict=True):
        assert bcu("cleanse", untrained, "--images", photos, "--out", out, "--seed", seed, *QUICK).code == 0
    first, again, other = (out.read_bytes() for out in outs)
    assert first == again
    assert first != other


def test_two_attacks_with_one_seed_write_the_same_bytes(bcu, labelled: Path, tmp_path: Path) -> None:
    for name in "ab":
        out = tmp_path / f"{name}.safetensors"
        ran = bcu("attack", "blended", "--data", labelled, "--arch", "resnet8", "--epochs", 1, "--out", out)
        assert ran.code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "a.trigger.safetensors").read_bytes() == (
        tmp_path / "b.trigger.safetensors"
    ).read_bytes()


def test_an_attack_teaches_its_backdoor(bcu, labelled: Path, tmp_path: Path) -> None:
    """On a quarter of the pixels; tests/data has what the attack makes of all of them."""
    words = [
        "--arch",
        "resnet8",
        "--input-size",
        16,
        "--epochs",
        12,
        "--batch-size",
        32,
        "--setting",
        "cell=2",
    ]
    words += ["--poison-rate", 0.3, "--precision", "fp32", "--out", tmp_path / "bad.safetensors", "--json"]
    report = bcu("attack", "badnets", "--data", labelled, *words).json
    assert report["acc"]["value"] > 0.8
    assert report["asr"]["value"] > 0.9


@pytest.mark.parametrize("name", ["sig", "blended"])
def test_other_attacks_run(bcu, labelled: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "bad.safetensors"
    words = ["--data", labelled / "train", "--arch", "resnet8", "--epochs", 1, "--out", out, "--json"]
    report = bcu("attack", name, *words).json
    assert report["images"]["measured_on"] == 64  # a tenth, held out
    assert report["images"]["poisoned"] == pytest.approx(58, abs=8)


def interrupt(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Start a command, and press Ctrl-C once it has trained for a while."""
    telling = Telling()
    command = [sys.executable, "-m", "bcu_cli", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, env=telling.environment)
    deadline = time.monotonic() + 120
    while not telling.is_training(process.pid) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(
    bcu, untrained: Path, photos: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    words = ["cleanse", str(untrained), "--images", str(photos), "--method", "bcu"]
    words += ["--epochs", "6", "--batch-size", "64"]
    stopped = interrupt([*words, "--out", str(out)])
    assert stopped.returncode == 130, stopped.stderr
    assert "--resume continues from there" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert stopped.stdout == ""
    assert not out.exists()
    assert bcu(*words, "--out", out, "--seed", 9, "--resume").code == 2  # another run's state
    resumed = bcu(*words, "--out", out, "--resume")
    assert resumed.code == 0
    assert "resuming after step" in resumed.err
    assert bcu(*words, "--out", whole).code == 0
    assert out.read_bytes() == whole.read_bytes()
    written = [out.name, f"{out.name}.intoto.json", whole.name, f"{whole.name}.intoto.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == written


def test_a_pickle_stays_a_pickle_with_its_nesting(bcu, untrained: Path, photos: Path, tmp_path: Path) -> None:
    original = tmp_path / "checkpoint.pth"
    weights = {f"module.{name}": tensor.half() if tensor.is_floating_point() else tensor
               for name, tensor in load_file(untrained).items()}  # fmt: skip
    torch.save({"epoch": 7, "state_dict": weights, "optimizer": {"state": {0: torch.zeros(3)}}}, original)
    out = tmp_path / "clean.pth"
    words = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", *QUICK]
    assert bcu("cleanse", original, "--images", photos, "--out", out, *words).code == 0
    written = torch.load(out, weights_only=True)
    assert written["epoch"] == 7
    assert "optimizer" not in written
    assert list(written["state_dict"]) == list(weights)
    assert {tensor.dtype for tensor in written["state_dict"].values()} == {torch.float16, torch.int64}


LOADS = {
    "torchvision": (
        "torchvision:resnet18",
        """
import sys, torch, torchvision, safetensors.torch as s
m = torchvision.models.resnet18(num_classes=4)
m.load_state_dict(s.load_file(sys.argv[1]))
""",
    ),
    "timm": (
        "timm:resnet10t",
        """
import sys, torch, timm, safetensors.torch as s
m = timm.create_model('resnet10t', num_classes=4)
m.load_state_dict(s.load_file(sys.argv[1]))
""",
    ),
    "torchscript": ("resnet8", "import sys, torch\nm = torch.jit.load(sys.argv[1])\n"),
}


@pytest.mark.parametrize("library", LOADS)
def test_the_output_loads_without_bcu(bcu, photos: Path, tmp_path: Path, library: str) -> None:
    from safetensors.torch import save_file

    from bcu_cli.models import build

    arch, code = LOADS[library]
    original = tmp_path / "model.safetensors"
    save_file(build(arch, num_classes=4).state_dict(), original)
    suffix, format_ = (".pt", "torchscript") if library == "torchscript" else (".safetensors", "same")
    out = tmp_path / f"out{suffix}"
    words = ["--arch", arch, "--input-size", 32, "--mean", "0.5", "--std", "0.25", "--format", format_]
    ran = bcu("cleanse", original, "--images", photos, "--out", out, *words, *QUICK)
    assert ran.code == 0, ran.err
    forbid = "import sys\nsys.modules['bcu_cli'] = None\n"
    use = """
assert m.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
assert m(torch.zeros(5, 3, 32, 32)).shape == (5, 4)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", forbid + code + use, str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_torchscript_in_torchscript_out(bcu, untrained: Path, photos: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    assert (
        bcu("cleanse", untrained, "--images", photos, "--out", first, "--format", "torchscript", *QUICK).code
        == 0
    )
    said = ["--arch", "resnet8", "--mean", "0.5", "--std", "0.25"]
    ran = bcu("cleanse", first, "--images", photos, "--out", second, *said, *QUICK, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["output"]["format"] == "torchscript"


def test_inspect_says_what_the_file_is(bcu, backdoored: Path) -> None:
    (report,) = bcu("inspect", backdoored, "--json").json["files"]
    assert report["safe"] is True
    assert report["architecture"]["name"] == "resnet8"
    assert report["architecture"]["num_classes"] == 8
    assert report["not_finite"] == {}
    assert json.loads(report["metadata"]["bcu.classes"]) == sorted(signs.CLASSES)
    assert "resnet8" in bcu("inspect", backdoored).out
    with safe_open(backdoored, "pt") as file:
        assert report["tensors"] == len(file.keys())


def test_an_own_trigger_from_a_picture(bcu, backdoored: Path, labelled: Path, tmp_path: Path) -> None:
    words = ["evaluate", backdoored, "--data", labelled, "--json"]
    same = bcu(*words, *own_trigger(tmp_path), "--target-class", 0).json["models"][0]
    saved = bcu(*words, "--trigger", backdoored.with_name("bad.trigger.safetensors")).json["models"][0]
    assert same["asr"] == saved["asr"]
    assert same["asr"]["value"] > 0.9


def test_output_that_nobody_reads_is_no_error(untrained: Path) -> None:
    piped = subprocess.run(
        f"{sys.executable} -m bcu_cli inspect {untrained} --json | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert piped.stdout == "{"
    assert piped.stderr == ""


def test_stdout_carries_one_document_and_stderr_no_colour(
    untrained: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    ran = bcu_process("cleanse", untrained, "--images", photos, "--out", out, *QUICK, "--json")
    assert ran.code == 0
    assert ran.json["command"] == "cleanse"
    assert "\x1b" not in ran.err + ran.out
