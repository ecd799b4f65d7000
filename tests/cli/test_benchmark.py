"""A benchmark with a fake in place of attack, cleanse and evaluate; and once with true, tiny ones."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from bcu_cli.defenses.bcu import BcuOptions
from bcu_cli.evaluation.trigger_choice import Own, TriggerChoice
from bcu_cli.images.sources import signs
from bcu_cli.workflows import jobs
from bcu_cli.workflows.attack import AttackRequest
from bcu_cli.workflows.cleanse import CleanseRequest
from bcu_cli.workflows.evaluate import EvaluateRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Ran

FAKE = (sys.executable, str(Path(__file__).with_name("fake_bcu.py")))
DRIVER = f"""
import sys
from bcu_cli.cli.app import run
from bcu_cli.runs import engine
from bcu_cli.workflows import benchmark, jobs
jobs.PROGRAM = {FAKE!r}
benchmark._check_options = lambda cells: None  # these two import torch, which takes seconds
engine.on_gpu = lambda device: False
sys.exit(run(sys.argv[1:]))
"""
"""The command line with the fake, as a process of its own."""
PLAN = """
title = "Two attacks"
paper = "table1"
architectures = ["resnet8"]
max-images = [2500]
[data.cifar10]
defense-images = 3
[attacks.badnets]
epochs = 3
setting = ["cell=2", "x=1"]
flip = true
[attacks.sig]
[defenses.bcu]
strength = 3
[defenses.ft]
method = "ft"
[images.own]
max-images = [2]
[[models]]
seeds = [0, 1]
"""


class Keeper:
    """Calls ``bcu benchmark`` on one plan, and reads what is there."""

    def __init__(self, bcu: Callable[..., Ran], root: Path) -> None:
        self.root, self.out, self.plan = root, root / "results", root / "two.toml"
        self.plan.write_text(PLAN)
        self._bcu = bcu
        for part, count in (("train", 6), ("test", 4)):
            for name in ("cat", "dog"):
                folder = root / "data" / "cifar10" / part / name
                folder.mkdir(parents=True)
                for i in range(count):
                    (folder / f"{i}.png").write_bytes(b"an image")

    def words(self, *words: object) -> list[str]:
        own = ["benchmark", self.plan, "--out", self.out, "--data-root", self.root / "data", "--jobs", 2]
        return [str(word) for word in (*own, *words)]

    def __call__(self, *words: object) -> Ran:
        return self._bcu(*self.words(*words))

    def start(self, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, *self.words(*words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def tell(self, **behaviour: Any) -> None:
        (self.root / "behaviour.json").write_text(json.dumps(behaviour))

    def log(self, what: str = "start") -> list[dict[str, Any]]:
        file = self.root / "log"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in map(json.loads, lines) if line["what"] == what]

    def ran(self) -> Counter[str]:
        """How often each command has been started since the last time."""
        counts = Counter(line["command"] for line in self.log())
        (self.root / "log").unlink(missing_ok=True)
        return counts

    def cells(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted((self.out / "cells").glob("*/*.json"))}

    def cell(self, name: str) -> dict[str, Any]:
        return json.loads((self.out / "cells" / "two" / f"cifar10-resnet8-{name}.json").read_text())


@pytest.fixture
def keeper(bcu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    monkeypatch.setattr(jobs, "PROGRAM", FAKE)
    monkeypatch.setenv("FAKE_BCU", str(tmp_path))
    return Keeper(bcu, tmp_path)


def test_every_cell_is_measured_and_networks_are_shared(keeper: Keeper) -> None:
    ran = keeper()
    assert ran.code == 0, ran.err
    assert keeper.ran() == {"attack": 4, "cleanse": 8, "evaluate": 8}  # 2 attacks, 2 seeds, 2 defenses
    assert len(keeper.cells()) == 8
    cell = keeper.cell("sig-t0-s1-ft-own-2")
    assert list(cell["cell"].values()) == ["cifar10", "resnet8", "sig", 0, 1, "ft", "own", 2]
    assert (cell["before"]["acc"], cell["after"]["asr"]) == ({"value": 0.9}, {"value": 0.25})
    assert set(cell["seconds"]) == {"attack", "cleanse", "evaluate"}
    assert cell["made"]["images"] == 2
    assert cell["error"] is None
    assert "8 of 8: " in ran.err
    assert not list((keeper.out / "models").glob("*.clean.*"))
    assert max(map(len, keeper.cells().values())) < 4000


def test_what_the_commands_are_given(keeper: Keeper) -> None:
    assert keeper("--only", "attack=badnets", "--only", "seed=1").code == 0
    commands = {line["command"]: line for line in keeper.log() if "-ft-" not in str(line)}
    attack, cleanse, evaluate = (
        jobs.from_plain(commands[name]["job"]) for name in ("attack", "cleanse", "evaluate")
    )
    data, network = Path(attack.data), attack.out
    assert attack == AttackRequest(
        attack="badnets",
        data=str(data),
        out=network,
        epochs=3,
        settings=("cell=2", "x=1"),
        flip=True,
        arch="resnet8",
        target_class=0,
        seed=1,
        resume=True,
    )
    images, cleansed = cleanse.images, cleanse.out
    assert cleanse == CleanseRequest(
        model=network,
        images=images,
        out=cleansed,
        method="bcu",  # it is not what bcu cleanse does by itself
        options=BcuOptions(strength=3.0, seed=1),
        max_images=2,
        resume=True,
    )
    trigger = str(network).removesuffix(".safetensors") + ".trigger.safetensors"
    none = Own(picture=None, mask=None, mode="replace", alpha=None)
    assert evaluate == EvaluateRequest(
        models=(network, cleansed),
        data=str(data),
        triggers=TriggerChoice(name=trigger, target_class=None, target_said=False, own=none),
    )
    defense, test = ({p.resolve() for p in folder.glob("*/*")} for folder in (images, data / "test"))
    whole = {p.resolve() for p in (keeper.root / "data/cifar10/test").glob("*/*")}
    assert (len(defense), len(test), defense | test) == (3, 5, whole)
    assert len(list((data / "train").glob("*/*"))) == 12
    methods = Counter(line["job"]["method"] for line in keeper.log() if line["command"] == "cleanse")
    assert methods == {"bcu": 1, "ft": 1}


def test_started_again_it_does_only_what_is_missing(keeper: Keeper) -> None:
    assert keeper("--only", "attack=sig").code == 0
    before = keeper.cells()
    assert keeper.ran() == {"attack": 2, "cleanse": 4, "evaluate": 4}
    assert keeper().code == 0
    assert keeper.ran() == {"attack": 2, "cleanse": 4, "evaluate": 4}
    assert before.items() <= keeper.cells().items()
    after = keeper.cells()
    assert keeper().code == 0
    assert keeper.ran() == {}
    assert keeper.cells() == after
    (keeper.out / "cells/two/cifar10-resnet8-sig-t0-s1-ft-own-2.json").unlink()
    assert keeper().code == 0
    assert keeper.ran() == {"cleanse": 1, "evaluate": 1}
    for file in (keeper.out / "models").iterdir():
        file.unlink()
    assert keeper().code == 0
    assert keeper.ran() == {}


def test_a_damaged_network_is_trained_again_for_what_is_missing(keeper: Keeper) -> None:
    assert keeper("--only", "seed=0").code == 0
    keeper.ran()
    for cell in (keeper.out / "cells/two").glob("*-ft-*"):
        cell.unlink()
    (network,) = (n for n in (keeper.out / "models").glob("*-sig-*.safetensors") if "trigger" not in n.name)
    network.write_bytes(b"?")
    ran = keeper("--only", "seed=0")
    assert ran.code == 0
    assert keeper.ran() == {"attack": 1, "cleanse": 2, "evaluate": 2}
    assert f"{network.name} is made again" in ran.err


def test_a_failing_cell_is_recorded_and_the_rest_is_done(keeper: Keeper) -> None:
    keeper.tell(fail=['"method": "ft"'])
    ran = keeper()
    assert ran.code == 2
    assert "4 of 8 cells failed" in ran.err
    error = {"step": "cleanse", "message": "it is too hot", "hint": "wait for winter"}
    assert keeper.cell("sig-t0-s0-ft-own-2")["error"] == error
    assert keeper.cell("sig-t0-s0-bcu-own-2")["error"] is None
    keeper.ran()
    keeper.tell(fail=["attack sig"])
    (keeper.out / "models").rename(keeper.root / "gone")
    ran = keeper()
    assert ran.code == 2
    assert keeper.ran() == {"attack": 4, "cleanse": 2, "evaluate": 2}
    assert keeper.cell("sig-t0-s0-ft-own-2")["error"]["step"] == "attack"
    assert keeper.cell("sig-t0-s0-bcu-own-2")["error"] is None
    keeper.tell()
    assert keeper().code == 0
    assert keeper.ran() == {"attack": 2, "cleanse": 2, "evaluate": 2}
    assert all(json.loads(cell)["error"] is None for cell in keeper.cells().values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("quick = true", "--method ft has no --quick"),
        ('setting = "u"', "--setting u is not NAME=NUMBER"),
        ("momentum = 2", "--momentum 2.0 is more than 1"),
        ("batch-size = 1", "--batch-size 1 is less than 2"),
    ],
)
def test_what_a_method_refuses_fails_its_cells_alone(keeper: Keeper, line: str, message: str) -> None:
    keeper.plan.write_text(PLAN.replace('method = "ft"', f'method = "ft"\n{line}'))
    ran = keeper("--only", "attack=sig", "--only", "seed=0")
    assert ran.code == 2
    assert "1 of 2 cells failed" in ran.err
    error = keeper.cell("sig-t0-s0-ft-own-2")["error"]
    assert (error["step"], error["message"]) == ("cleanse", message)
    assert keeper.cell("sig-t0-s0-bcu-own-2")["error"] is None
    assert keeper.ran() == {"attack": 1, "cleanse": 1, "evaluate": 1}


def test_a_network_with_a_bad_verdict_is_measured_all_the_same(keeper: Keeper) -> None:
    keeper.plan.write_text(PLAN + '[defenses.auto]\nmethod = "auto"\n')
    keeper.tell(
        judged=['"method": "auto"', '"method": "ft"']
    )  # ft has no verdict, so nothing asks for its network
    ran = keeper()
    assert ran.code == 2
    assert "4 of 12 cells failed" in ran.err
    cell = keeper.cell("sig-t0-s0-auto-own-2")
    assert (cell["error"], cell["after"]["asr"]) == (None, {"value": 0.25})
    assert cell["made"]["verdict"]["word"] == "not cleansed"
    assert keeper.cell("sig-t0-s0-bcu-own-2")["made"]["verdict"] is None
    error = keeper.cell("sig-t0-s0-ft-own-2")["error"]
    assert (error["step"], "exit code 1" in error["message"]) == ("cleanse", True)


def test_plans_in_one_folder_share_cells_and_networks(keeper: Keeper) -> None:
    assert keeper().code == 0
    keeper.ran()
    keeper.plan = keeper.root / "three.toml"
    keeper.plan.write_text(PLAN.replace("[defenses.ft]", "[defenses.nad]").replace('"ft"', '"nad"'))
    ran = keeper()
    assert ran.code == 0
    assert keeper.ran() == {"cleanse": 4, "evaluate": 4}
    assert "4 of them from another plan" in ran.err
    assert len(list((keeper.out / "cells/three").iterdir())) == 8


def test_a_finished_cell_is_not_made_otherwise(keeper: Keeper) -> None:
    assert keeper().code == 0
    before = keeper.cells()
    keeper.ran()
    keeper.plan.write_text(PLAN.replace("epochs = 3", "epochs = 4"))
    ran = keeper()
    assert ran.code == 2
    assert "made with epochs 3, not 4" in ran.error
    assert keeper.ran() == {}
    assert keeper.cells() == before


def test_cells_of_other_options_do_not_join_those_of_another_seed(keeper: Keeper) -> None:
    assert keeper("--only", "seed=0").code == 0
    keeper.ran()
    keeper.plan.write_text(PLAN.replace("epochs = 3", "epochs = 4"))
    ran = keeper("--only", "seed=1")
    assert (ran.code, keeper.ran()) == (2, {})
    assert "made with epochs 3, not 4" in ran.error


def test_images_that_have_changed_do_not_join_the_cells_of_others(keeper: Keeper) -> None:
    assert keeper("--only", "defense=bcu").code == 0
    keeper.ran()
    before = keeper.cells()
    (keeper.root / "data" / "cifar10" / "train" / "cat" / "0.png").write_bytes(b"another image")
    ran = keeper()
    assert (ran.code, keeper.ran(), keeper.cells()) == (2, {}, before)
    assert "measured on other images" in ran.error
    assert keeper("--only", "defense=bcu").code == 0  # nothing is missing, so no image is needed
    for file in (keeper.out / "cells").glob("*/*.json"):
        file.unlink()
    assert keeper("--only", "defense=bcu").code == 0
    assert keeper.ran() == {"attack": 4, "cleanse": 4, "evaluate": 4}  # the networks are of other images, too


def test_a_folder_of_fewer_images_than_a_cell_is_named_after(keeper: Keeper) -> None:
    keeper.plan.write_text(
        PLAN.replace("[images.own]", '[images.other]\nfolder = "cifar10/test"').replace("[2]", "[9]")
    )
    ran = keeper()
    assert (ran.code, keeper.ran()) == (2, {})
    assert "holds 8 images, not 9" in ran.error


def test_a_dry_run_says_what_is_missing_and_estimates(keeper: Keeper) -> None:
    first = keeper("--dry-run", "--json")
    assert first.json["estimated_seconds"] is None
    assert (first.json["cells"], len(first.json["missing"]), first.json["networks_to_train"]) == (8, 8, 4)
    assert keeper.ran() == {}
    assert not keeper.out.exists()
    assert keeper("--only", "seed=0").code == 0
    for number, path in enumerate(sorted((keeper.out / "cells/two").iterdir())):
        cell = json.loads(path.read_text())
        assert (
            path.name.split("-")[2:6:3]
            == [["badnets", "bcu"], ["badnets", "ft"], ["sig", "bcu"], ["sig", "ft"]][number]
        )
        cell["seconds"] = {
            "attack": [100, 100, 60, 60][number],
            "cleanse": [9, 19, 29, 39][number],
            "evaluate": 1,
        }
        path.write_text(json.dumps(cell))
    again = keeper("--dry-run", "--json").json
    # networks 100 + 60; bcu (10 + 30) / 2 for each of two cells, ft (20 + 40) / 2 for each; two at a time
    assert again["estimated_seconds"] == pytest.approx((160 + 2 * 20 + 2 * 30) / 2)
    assert len(again["missing"]) == 4
    assert "about 2 min, 2 at a time" in keeper("--dry-run").out


def test_a_dry_run_without_pictures(keeper: Keeper) -> None:
    ran = keeper("--dry-run", "--data-root", keeper.root / "nowhere")
    assert ran.code == 0
    assert "--data-root" in ran.err
    assert "time               unknown" in ran.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "big"], "no size big"),
        (["--only", "attack=iab"], "no attack is iab"),
        (["--jobs", "0"], "--jobs 0"),
        (["--engine", "slurm"], "no engine slurm"),
        (["--gpus-per-cell", "0.5"], "--gpus-per-cell"),
        (["--engine", "ray"], "--jobs"),
        (["--data-root", "/nowhere"], "no folder /nowhere/cifar10"),
    ],
)
def test_what_makes_no_sense_is_refused(keeper: Keeper, words: list[str], said: str) -> None:
    ran = keeper(*words)
    assert ran.code == 2
    assert said in ran.error
    assert "hint: " in ran.err
    assert keeper.ran() == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("epochs = 3", "epoch = 3"), "no option --epoch"),
        (("epochs = 3", 'epochs = "many"'), "--epochs cannot be many"),
        (("strength = 3", "strenght = 3"), "defenses.bcu: bcu cleanse has no option --strenght"),
        (("strength = 3", 'strength = "much"'), "defenses.bcu: --strength cannot be much"),
        (("strength = 3", "devices = 2"), "[defenses.bcu] gives devices"),
        (('"resnet8"', '"resnet9"'), "resnet9"),
        (("defense-images = 3", "defense-images = 8"), "holds 8 images, not more than 8"),
    ],
)
def test_plans_that_every_cell_would_refuse(keeper: Keeper, change: tuple[str, str], said: str) -> None:
    keeper.plan.write_text(PLAN.replace(*change))
    ran = keeper()
    assert ran.code == 2
    assert said in ran.error
    assert keeper.ran() == {}


def test_a_table_is_made_of_cells_alone(keeper: Keeper) -> None:
    keeper.tell(after={"badnets-t0-s0": [0.80, 0.01], "badnets-t0-s1": [0.84, 0.05]}, fail=["sig-t0-s1-ft"])
    assert keeper().code == 2
    for other in ("models", "pictures"):
        (keeper.out / other).rename(keeper.root / other)
    ran = keeper._bcu("benchmark", "table", keeper.out)
    assert ran.code == 0
    # mean of 1 % and 5 %; their deviation is √((2² + 2²) / 1) = 2.83 points; the paper has 3.00 % and 92.15 %
    line = next(
        line for line in (keeper.out / "table.md").read_text().splitlines() if "| badnets | bcu |" in line
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:8] == ["2", "100.00 ± 0.00", "3.00 ± 2.83", "97.00 ± 2.83", "3.00", "+0.00"]
    assert cells[8:] == ["90.00 ± 0.00", "82.00 ± 2.83", "8.00 ± 2.83", "92.15", "−10.15"]
    with (keeper.out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_place = {(row["attack"], row["defense"]): row for row in rows}
    assert float(by_place["badnets", "bcu"]["asr_after"]) == pytest.approx(0.03)
    assert by_place["sig", "ft"]["failed"] == "1"
    assert by_place["sig", "ft"]["asr_after_deviation"] == ""
    assert ("mean", "bcu") in by_place
    assert float(by_place["mean", "bcu"]["asr_after"]) == pytest.approx((0.03 + 0.25) / 2)
    assert float(by_place["mean", "bcu"]["asr_after_paper"]) == pytest.approx((0.0300 + 0.0091) / 2)
    page = (keeper.out / "table.html").read_text()
    ET.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert "it is too hot" in page
    assert "it is too hot" in (keeper.out / "table.md").read_text()
    assert "http" not in page
    shown = keeper._bcu("benchmark", "table", keeper.out, "--json", "--out", keeper.root).json
    assert shown["tables"][0]["rows"][0]["after"]["asr"]["mean"] == pytest.approx(0.03)
    assert (keeper.root / "table.md").read_bytes() == (keeper.out / "table.md").read_bytes()


def test_a_table_of_nothing(keeper: Keeper) -> None:
    ran = keeper._bcu("benchmark", "table", keeper.root)
    assert ran.code == 2
    assert "no cells" in ran.error
    (keeper.out / "cells/two").mkdir(parents=True)
    (keeper.out / "cells/two/x.json").write_text("{}")
    ran = keeper._bcu("benchmark", "table", keeper.out)
    assert ran.code == 2
    assert "no cell" in ran.error


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not hear of its parent's death")
def test_killed_five_times_it_loses_no_cell_and_repeats_none(keeper: Keeper) -> None:
    keeper.plan.write_text(PLAN.replace("max-images = [2]", "max-images = [1, 2, 3]"))
    keeper.tell(seconds=0.02)
    chance = random.Random(1)
    finished: dict[str, bytes] = {}
    done_at: dict[str, int] = {}  # how long the log was when a cell was first seen finished
    trained_at: dict[str, int] = {}
    for _ in range(5):
        process = keeper.start()
        wanted = len(finished) + chance.randint(0, 3)
        deadline = time.monotonic() + 120
        while len(keeper.cells()) < wanted or (wanted == len(finished) and not keeper.log()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.random() / 5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = keeper.cells()
        assert finished.items() <= found.items()
        length = len(keeper.log())
        for name in found.keys() - finished.keys():
            done_at[name.removesuffix(".json")] = length
        for report in (keeper.out / "models").glob("*.json"):
            if ".clean" not in report.name:
                trained_at.setdefault(report.stem, length)
        finished = found
    assert 0 < len(finished) < 24
    process = keeper.start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"{len(finished)} of 24 cells are there" in err
    cells = keeper.cells()
    assert len(cells) == 24
    assert finished.items() <= cells.items()
    starts = keeper.log()
    for name, length in done_at.items():
        again = [line for line in starts[length:] if any(f"/{name}-" in word for word in line["words"])]
        assert not again, (name, again)
    for name, length in trained_at.items():
        assert not [
            s for s in starts[length:] if s["command"] == "attack" and name in s["job"]["out"]["path"]
        ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_goes_on(keeper: Keeper, number: signal.Signals) -> None:
    keeper.tell(seconds=0.3)
    process = keeper.start()
    while not keeper.cells():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "the same command again goes on" in err
    assert "Traceback" not in err
    assert not [cell for cell in keeper.cells().values() if json.loads(cell)["error"]]
    keeper.tell()
    before = keeper.cells()
    assert keeper().code == 0
    assert before.items() <= keeper.cells().items()


@pytest.mark.slow
def test_on_a_local_ray(keeper: Keeper) -> None:
    pytest.importorskip("ray")
    keeper.tell(fail=['"method": "ft"'])
    words = [word for word in keeper.words() if word not in {"--jobs", "2"}]
    command = [sys.executable, "-c", DRIVER, *words, "--engine", "ray", "--gpus-per-cell", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 2, ran.stderr
    assert "4 of 8 cells failed" in ran.stderr
    assert Counter(line["command"] for line in keeper.log()) == {"attack": 4, "cleanse": 8, "evaluate": 4}
    assert keeper.cell("sig-t0-s1-bcu-own-2")["after"]["asr"] == {"value": 0.25}


@pytest.mark.slow
def test_on_ray_an_interruption_reaches_what_runs(keeper: Keeper) -> None:
    pytest.importorskip("ray")
    keeper.tell(seconds=60)
    words = [word for word in keeper.words() if word not in {"--jobs", "2"}]
    command = [sys.executable, "-c", DRIVER, *words, "--engine", "ray"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not keeper.log():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, ""), err
    assert len(keeper.log("stop")) == len(keeper.log("start"))
    assert keeper.cells() == {}


@pytest.mark.slow
def test_a_true_cell_from_end_to_end(bcu, tmp_path: Path) -> None:
    signs.write_folder(tmp_path / "data/signs/train", 8, seed=1)
    signs.write_folder(tmp_path / "data/signs/test", 10, seed=2)
    plan = tmp_path / "tiny.toml"
    plan.write_text(
        'architectures = ["resnet8"]\nmax-images = [40]\n[data.signs]\ndefense-images = 44\n'
        "[attacks.badnets]\nepochs = 1\nbatch-size = 32\n[defenses.bcu]\nepochs = 1\nbatch-size = 16\n"
    )
    words = ["benchmark", plan, "--data-root", tmp_path / "data", "--out", tmp_path / "out", "--json"]
    ran = bcu(*words)
    assert ran.code == 0, ran.err
    (cell,) = (tmp_path / "out/cells/tiny").iterdir()
    measured = json.loads(cell.read_text())
    assert measured["before"]["acc"]["of"] == measured["after"]["acc"]["of"] == 80 - 44
    assert measured["made"]["images"] == 40 - 8  # eight at the least are held out
    assert ran.json["rows"][0]["after"]["acc"]["count"] == 1
