"""``action.yml`` and ``.pre-commit-hooks.yaml``: what GitHub and pre-commit would do with them."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pages import ROOT
from safetensors.torch import save_file

from bcu_cli.checkpoints import MODEL_SUFFIXES
from bcu_cli.models import build

if TYPE_CHECKING:
    from pathlib import Path

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
INPUTS = {name: each["default"] for name, each in ACTION["inputs"].items()}
EXAMPLES = ROOT / "examples" / "ci"


class Runner:
    """Runs the steps of the action as GitHub's runner does, with a python that installs nothing."""

    def __init__(self, folder: Path) -> None:
        self.work, self.log = folder / "work", folder / "log"
        self.temp, self.tools, self.output = folder / "temp", folder / "tools", folder / "output"
        for each in (self.work, self.temp, self.tools):
            each.mkdir()
        self._script(
            self.tools / "python",
            f'echo "python $*" >> {self.log}\n'
            f'mkdir -p "$3/bin"\ncp {self.tools}/pip "$3/bin/python"\ncp {self.tools}/bcu "$3/bin/bcu"\n',
        )
        self._script(self.tools / "pip", f'echo "pip $*" >> {self.log}\n')
        self._script(self.tools / "bcu", f'exec {sys.executable} -P -m bcu_cli "$@"\n')

    @staticmethod
    def _script(path: Path, text: str) -> None:
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)

    def __call__(self, **given: str) -> int:
        """Run all steps; returns the exit code of the last one."""
        inputs = INPUTS | {name.replace("_", "-"): value for name, value in given.items()}
        self.output.write_text("")
        for step in ACTION["runs"]["steps"]:
            if "run" not in step:
                continue
            assert "${{" not in step["run"]  # text of an input would be run
            own = {name: _filled(value, inputs) for name, value in step["env"].items()}
            path = f"{self.tools}{os.pathsep}{os.environ['PATH']}"
            runner = {
                "PATH": path,
                "RUNNER_TEMP": str(self.temp),
                "GITHUB_OUTPUT": str(self.output),
                "GITHUB_ACTION_PATH": str(ROOT),
                "PYTHONPATH": str(ROOT),
            }
            shell = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
            ran = subprocess.run(
                shell, cwd=self.work, env=os.environ | runner | own, check=False, timeout=300
            )
            if ran.returncode:
                break
        return ran.returncode

    @property
    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.output.read_text().splitlines())

    def results(self, name: str = "bcu.sarif") -> list[str]:
        (run,) = json.loads((self.work / name).read_text())["runs"]
        return [result["ruleId"] for result in run["results"]]


def _filled(value: str, inputs: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], value)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_a_safe_file_passes_and_an_unsafe_one_fails(runner: Runner) -> None:
    save_file(build("resnet8", num_classes=9).state_dict(), runner.work / "good one.safetensors")
    (runner.work / "torch.py").write_text("raise SystemExit('run from the inspected repository')")
    assert runner(model="good one.safetensors") == 0
    assert runner.outputs == {"exit-code": "0", "sarif": "bcu.sarif"}
    assert set(runner.results()) <= {"architecture-unknown"}
    installed = runner.log.read_text()
    assert f"install --quiet {ROOT}\n" in installed
    (runner.work / "bad.pt").write_bytes(pickle.dumps({"a": print}))
    assert runner(model="good one.safetensors\nbad.pt\n", sarif="new.sarif") == 1
    assert runner.outputs == {"exit-code": "1", "sarif": "new.sarif"}
    assert "pickle-global" in runner.results("new.sarif")
    (runner.work / "known.sarif").write_bytes((runner.work / "new.sarif").read_bytes())
    assert runner(model="good one.safetensors\nbad.pt", baseline="known.sarif") == 0
    assert "pickle-global" not in runner.results()


def test_wrong_inputs_leave_no_sarif(runner: Runner) -> None:
    save_file(build("resnet8", num_classes=9).state_dict(), runner.work / "m.safetensors")
    for given in ({"scan": "yes"}, {"images": "photos"}, {"fail_on": "$(touch x)"}, {"model": "\n"}):
        assert runner(**({"model": "m.safetensors"} | given)) == 2
        assert "sarif" not in runner.outputs
    assert [file.name for file in runner.work.iterdir()] == ["m.safetensors"]


def test_every_input_of_the_action_is_used_and_explained() -> None:
    text = (ROOT / "action.yml").read_text()
    for name, each in ACTION["inputs"].items():
        assert f"inputs.{name} }}}}" in text
        assert each["description"]
        assert isinstance(each["default"], str)
    assert ACTION["runs"]["using"] == "composite"
    assert all(step["shell"] == "bash" for step in ACTION["runs"]["steps"] if "run" in step)


def test_the_hook_takes_what_is_called_like_a_model() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {"id", "name", "entry", "language"} <= set(hook)
    assert hook["entry"].split() == ["bcu", "inspect"]
    pattern = re.compile(hook["files"])  # pre-commit searches the path of each file
    missed = {suffix for suffix in MODEL_SUFFIXES if not pattern.search(f"deep/model{suffix}")}
    assert missed == {".ts"}  # of TypeScript
    assert pattern.search("MODEL.PT")
    assert not any(map(pattern.search, ("readme.md", "a.pt.txt", "script", "a.ts", "point")))


def test_the_examples_use_what_there_is() -> None:
    hooks: Any = yaml.safe_load((EXAMPLES / "pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    defined = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [each["id"] for each in hooks] == [each["id"] for each in defined]
    workflow = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())
    (step,) = [each for each in workflow["jobs"]["inspect"]["steps"] if "bcu" in each.get("uses", "")]
    assert set(step["with"]) <= set(INPUTS)
