"""``bcu inspect`` on many files and folders: what a CI job relies on."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bcu_cli.checkpoints import RULES
from bcu_cli.models import build


class _Runs:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A folder as a hub has them: two models, a model card, an image, an empty file."""
    root = tmp_path / "zoo"
    (root / "deep").mkdir(parents=True)
    save_file(build("resnet8", num_classes=10).state_dict(), root / "a.safetensors")
    torch.save(build("resnet8", num_classes=10).state_dict(), root / "deep" / "b.pth")
    (root / "README.md").write_text("# A model card\n")
    (root / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    (root / "deep" / "__init__.py").touch()
    (root / ".git").mkdir()
    (root / ".git" / "index").write_bytes(b"DIRC\0\0\0\2")
    return root


def unsafe(path: Path, canary: Path) -> Path:
    path.write_bytes(pickle.dumps({"weights": _Runs(canary)}))
    return path


def names(report: dict) -> list[str]:
    return [file["path"].rpartition("/")[2] for file in report["files"]]


def test_a_folder_is_inspected_at_any_depth(bcu, zoo: Path) -> None:
    ran = bcu("inspect", zoo, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["verdict"] == "safe-to-open"
    assert names(ran.json) == ["a.safetensors", "b.pth"]
    assert [file["architecture"]["name"] for file in ran.json["files"]] == ["resnet8", "resnet8"]
    assert sorted(path.rpartition("/")[2] for path in ran.json["passed_over"]) == [
        "README.md",
        "__init__.py",
        "logo.png",
    ]
    table = bcu("inspect", zoo)
    assert "resnet8" in table.out
    assert "3 images, texts and empty files were skipped" in table.err


def test_one_unsafe_file_among_many_is_the_verdict(bcu, zoo: Path, tmp_path: Path) -> None:
    unsafe(zoo / "c.bin", tmp_path / "canary")
    (zoo / "d.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")  # a finding beats what could not be read
    ran = bcu("inspect", zoo, "--json")
    assert ran.code == 1
    assert ran.json["verdict"] == "unsafe"
    assert {name: file["safe"] for name, file in zip(names(ran.json), ran.json["files"], strict=True)} == {
        "a.safetensors": True,
        "c.bin": False,
        "d.onnx": None,
        "b.pth": True,
    }
    assert "ONNX" in ran.error
    assert not (tmp_path / "canary").exists()


def test_what_is_called_like_a_model_is_never_passed_over(bcu, zoo: Path) -> None:
    (zoo / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (zoo / "empty.pt").touch()
    ran = bcu("inspect", zoo, "--json")
    assert ran.code == 2
    assert ran.json["verdict"] == "inconclusive"
    problems = {file["path"].rpartition("/")[2]: file["problem"] for file in ran.json["files"]}
    assert problems["lfs.safetensors"]["rule"] == problems["empty.pt"]["rule"] == "not-a-model"
    assert "Git LFS" in ran.err
    assert bcu("inspect", zoo, "--fail-on", "inconclusive").code == 1


def test_a_folder_without_models_is_not_clean(bcu, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    for format_ in ("table", "json", "sarif"):
        ran = bcu("inspect", tmp_path, "--format", format_)
        assert ran.code == 2
        assert "holds no model file" in ran.error


@pytest.mark.parametrize("fail_on", ["unsafe", "inconclusive", "unsafe,inconclusive"])
def test_fail_on_chooses_between_1_and_2_and_never_0(bcu, zoo: Path, tmp_path: Path, fail_on: str) -> None:
    unsafe(zoo / "c.bin", tmp_path / "canary")
    assert bcu("inspect", zoo, "--fail-on", fail_on).code == (1 if "unsafe" in fail_on else 2)


def test_a_format_within_another_is_a_finding(bcu, zoo: Path) -> None:
    path = zoo / "logo.png"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/data.pkl", b"")
    ran = bcu("inspect", zoo, "--json")
    assert ran.code == 1
    file = next(file for file in ran.json["files"] if file["path"] == str(path))
    assert [finding["rule"] for finding in file["findings"]] == ["polyglot"]


def test_options_that_make_no_sense(bcu, zoo: Path) -> None:
    ran = bcu("inspect", zoo, "--fail-on", "unsafe,everything")
    assert (ran.code, "everything is none of unsafe, suspicious, inconclusive" in ran.error) == (2, True)
    assert bcu("inspect", zoo, "--json", "--format", "sarif").code == 2
    assert bcu("inspect").code == 2


def test_a_folder_that_cannot_be_listed_is_a_problem(bcu, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    ran = bcu("inspect", zoo, "--json")
    assert ran.code == 2
    assert ran.json["problems"][0]["rule"] == "file-missing"
    assert "deep cannot be listed" in ran.error


def test_sarif(bcu, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsafe(zoo / "c d.bin", tmp_path / "canary")
    (zoo / "e.npz").write_bytes(b"\x93NUMPY")
    monkeypatch.chdir(tmp_path)
    ran = bcu("inspect", "zoo", "--format", "sarif")
    assert ran.code == 1
    assert ran.json["version"] == "2.1.0"
    (run,) = ran.json["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    assert all(rule["help"]["text"] and rule["shortDescription"]["text"] for rule in rules)
    (result,) = run["results"]
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == "pickle-global"
    assert result["level"] == "error"
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "zoo/c%20d.bin"
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False  # a file was not read
    assert invocation["exitCode"] == 1
    assert [item["descriptor"]["id"] for item in invocation["toolExecutionNotifications"]] == [
        "unsupported-format"
    ]
    assert len(run["artifacts"]) == 4
    (zoo / "c d.bin").unlink()
    (zoo / "e.npz").unlink()
    (run,) = bcu("inspect", "zoo", "--format", "sarif").json["runs"]
    assert run["invocations"][0]["executionSuccessful"] is True
    assert run["results"] == []


def test_a_file_of_ten_gigabytes_is_described_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    shapes = {
        name: list(tensor.shape) for name, tensor in build("resnet8", num_classes=10).state_dict().items()
    }
    header, position = {}, 0
    for name, shape in (shapes | {"padding": [5 * 2**29, 1]}).items():
        count = 1
        for side in shape:
            count *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, position + 4 * count]}
        position += 4 * count
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)  # sparse: it takes no room on the disk
    code = (
        "import sys, time; from bcu_cli.cli.app import run; "
        f"code = run(['inspect', {str(path)!r}, '--json']); "
        "status = dict(line.split(':', 1) for line in open('/proc/self/status')); "
        "peak = status['VmHWM'].split()[0]; "
        "print(code, time.process_time(), peak, 'torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    report = json.loads(ran.stdout)["files"][0]
    assert report["bytes"] > 10 * 2**30
    assert report["safe"] is True
    assert report["sha256"] is report["not_finite"] is None
    assert report["dtypes"] == {"float32": len(header)}
    exit_code, seconds, peak_kib, has_torch = ran.stderr.splitlines()[-1].split()
    assert exit_code == "0"  # these are the tensors of no network that is known, which is a note
    assert has_torch == "False"
    assert float(seconds) < 2  # to hash 10 GiB would take longer
    assert int(peak_kib) < 300 * 1024


def test_every_rule_is_used_and_none_is_unknown() -> None:
    import re

    import bcu_cli

    root = Path(bcu_cli.__file__).parent
    texts = [
        file.read_text()
        for folder in ("checkpoints", "detectors", "report", "workflows")
        for file in (root / folder).rglob("*.py")
        if file.name != "rules.py"
    ]
    sources = "\n".join(texts)
    assert [rule for rule in RULES if f'"{rule}"' not in sources] == []
    assert set(re.findall(r'rule\w*\b[^=\n]*= ?"([a-z-]+)"', sources)) <= set(RULES)


def test_a_model_in_several_files_is_one_model(bcu, tmp_path: Path) -> None:
    state = build("resnet8", num_classes=10).state_dict()
    names = list(state)
    weight_map = {}
    for number, part in enumerate((names[:9], names[9:])):
        save_file({name: state[name] for name in part}, tmp_path / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{number}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ran = bcu("inspect", tmp_path, "--json")
    assert ran.code == 0, ran.err
    (file,) = ran.json["files"]
    assert file["kind"] == "safetensors in 2 files"
    assert file["architecture"]["name"] == "resnet8"
    (tmp_path / "model-1.safetensors").unlink()
    ran = bcu("inspect", tmp_path, "--json")
    assert ran.code == 2
    assert ran.json["files"][-1]["problem"]["rule"] == "shards"


def test_networks_that_only_running_them_tells_apart_are_named(bcu, tmp_path: Path) -> None:
    save_file(build("torchvision:resnet18", num_classes=10).state_dict(), tmp_path / "m.safetensors")
    ran = bcu("inspect", tmp_path / "m.safetensors", "--json")
    assert ran.code == 0, ran.err
    architecture = ran.json["files"][0]["architecture"]
    assert architecture["name"] == "torchvision:resnet18"
    assert architecture["alternatives"] == ["timm:resnet18"]
    assert architecture["rivals"] == ["timm:resnetblur18"]
    assert "torchvision:resnet18 or timm:resnetblur18" in bcu("inspect", tmp_path / "m.safetensors").out


def test_odd_files_in_a_folder_are_problems_and_do_not_block(bcu, zoo: Path) -> None:
    os.mkfifo(zoo / "a.index.json")
    (zoo / "b.index.json").symlink_to("nowhere")
    (zoo / "c.index.json").write_text(json.dumps({"weight_map": {"a": "b" * 300}}))
    os.mkfifo(zoo / "d.pt")
    (zoo / "e.pt").symlink_to("e.pt")
    for form in ("json", "sarif", "table"):
        assert bcu("inspect", zoo, "--format", form).code == 2
    assert bcu("inspect", zoo / "missing.index.json").code == 2
    assert bcu("inspect", "z" * 300).code == 2


def test_a_name_that_is_no_text_stays_in_one_piece(bcu, tmp_path: Path) -> None:
    name = os.fsdecode(b"m\xff.pt")
    (tmp_path / name).write_bytes(b"no model")
    for form in ("json", "sarif", "table"):
        assert bcu("inspect", tmp_path, "--format", form).code == 2
    (run,) = bcu("inspect", tmp_path, "--format", "sarif").json["runs"]
    assert run["artifacts"][0]["location"]["uri"].endswith("/m%FF.pt")


def test_a_trigger_beside_its_model_is_no_unknown_network(bcu) -> None:
    """Its metadata say so; whatever says so is not passed by a scan all the same."""
    data = Path(__file__).parents[1] / "data"
    ran = bcu("inspect", data)
    assert ran.code == 0, ran.err
    assert "the trigger badnets" in ran.out
    scanned = bcu("inspect", data / "backdoored.trigger.safetensors", "--scan")
    assert scanned.code == 2
    assert "holds no layers" in scanned.error


def test_whatever_one_file_does_the_others_are_reported(
    bcu, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcu_cli.errors import CheckpointError
    from bcu_cli.workflows.reader import Reader

    # a text that looks like the end of a zip archive of several disks, at which zipfile raises
    locator, end = b"PK\6\7" + bytes(4) + bytes(8) + b"\x09\0\0\0", b"PK\5\6" + bytes(18)
    (zoo / "disks.txt").write_bytes(b"x" * 100 + b"\n" * 12 + locator + end)
    os.mkfifo(zoo / "pipe")
    (zoo / "loop").symlink_to("loop")
    (zoo / "folder").symlink_to(zoo, target_is_directory=True)
    (zoo / os.fsdecode(b"\xff\xfe")).write_bytes(b"\x01\xff")
    (zoo / "vanishing.pt").write_bytes(b"?")
    unsafe(zoo / "z.bin", tmp_path / "canary")
    look = Reader.inspect

    def unreachable(*_: object) -> Path:
        raise CheckpointError("hf-hub:a/b cannot be fetched", "check the network", rule="file-missing")

    monkeypatch.setattr("bcu_cli.workflows.inspection.fetch_all", unreachable)

    def failing(self: Reader, path: Path, arch: str | None = None) -> dict:
        if path.name == "vanishing.pt":
            path.unlink()
        if path.name == "logo.png":
            raise ZeroDivisionError("nobody foresaw it")
        return look(self, path, arch)

    monkeypatch.setattr(Reader, "inspect", failing)
    ran = bcu("inspect", zoo, tmp_path / ("z" * 300), "hf-hub:a/b", "--json")
    assert ran.code == 1
    files = {Path(file["path"]).name: file for file in ran.json["files"]}
    assert files["a.safetensors"]["safe"] is files["b.pth"]["safe"] is True
    assert files["z.bin"]["safe"] is False
    assert files["logo.png"]["problem"]["message"].endswith("ZeroDivisionError: nobody foresaw it")
    assert files["vanishing.pt"]["problem"]["rule"] == "file-missing"
    assert {"disks.txt", "loop", "z" * 300, os.fsdecode(b"\xff\xfe")} <= files.keys()
    assert [problem["path"] for problem in ran.json["problems"]] == ["hf-hub:a/b"]


def test_very_many_and_very_deep_files_are_listed_at_once(tmp_path: Path) -> None:
    from bcu_cli.workflows.inspection import find_files

    for number in range(10_000):
        (tmp_path / f"{number}.txt").touch()
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):  # deeper than Python's recursion goes
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    started = time.process_time()  # not the clock's: the machine may be busy
    found = find_files([tmp_path])
    seconds = time.process_time() - started
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # as deep as shutil cannot go
    assert seconds < 5  # it takes a tenth of that
    assert (len(found.files), found.problems) == (10_000, [])


def test_an_unknown_network_is_no_failure_of_an_audit(bcu, tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 7), torch.nn.Flatten(), torch.nn.Linear(45, 3))
    path, scripted = tmp_path / "own.pt", tmp_path / "scripted.pt"
    torch.save(network.state_dict(), path)
    ran = bcu("inspect", path, "--json")
    assert ran.code == 0, ran.err
    (file,) = ran.json["files"]
    assert (ran.json["verdict"], file["problem"], file["architecture"]) == ("safe-to-open", None, None)
    assert [(note["rule"], note["severity"]) for note in file["findings"]] == [
        ("architecture-unknown", "note")
    ]
    assert "is none of the" in bcu("inspect", path).out
    assert bcu("inspect", path, "--fail-on", "unknown-architecture").code == 2
    assert bcu("inspect", path, "--arch", "resnet20").code == 2
    scanned = bcu("inspect", path, "--scan")
    assert scanned.code == 2
    assert "is none of the" in scanned.error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(scripted))
    ran = bcu("inspect", scripted, "--fail-on", "unknown-architecture", "--json")
    assert ran.code == 0, ran.err
    rules = [note["rule"] for note in ran.json["files"][0]["findings"]]
    assert "architecture-own-graph" in rules


def test_a_renamed_network_is_said_to_be_one(bcu, tmp_path: Path) -> None:
    state = build("resnet8", num_classes=10).state_dict()
    save_file({f"t{i:03}": tensor for i, tensor in enumerate(state.values())}, tmp_path / "m.safetensors")
    ran = bcu("inspect", tmp_path / "m.safetensors")
    assert ran.code == 0, ran.err
    assert "resnet8, by shapes of the tensors" in ran.out
    assert "have other names" in " ".join(ran.out.split())


def test_a_whole_pickled_network_is_refused_with_what_to_do(bcu, tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), tmp_path / "whole.pth")
    ran = bcu("inspect", tmp_path / "whole.pth")
    assert ran.code == 1
    assert "holds an object of torch.nn.modules.linear.Linear" in ran.out
    assert "torch.save(model.state_dict()" in ran.out
