"""Kills every command that writes at random moments, goes on, and compares the bytes. Writes one JSON file.

    python examples/benchmarks/kills.py [--kills 200] [--minutes 20] [--out examples/results/kills.json]

A run is ended by SIGKILL, SIGTERM or SIGINT after a random time, up to four times in a row. It is then
finished: by ``--resume`` where the command has it, else by the same command. Its files must have the same
bytes as those of an undisturbed run, and there must be no others. After each kill there must be no files but
those and states. Times and speeds in JSON files are not compared.

Most runs are forked from this process, which has imported torch, so that kills fall into the work and into
the writing. The state is written after every step. The other runs are separate processes. Linux alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bcu_cli import __main__ as command_line
from bcu_cli import __version__
from bcu_cli.checkpoints import resume
from bcu_cli.images.sources import signs

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_IN_A_ROW = 4
SECONDS_TO_END = 60.0
PR_SET_CHILD_SUBREAPER = 36
UNSTEADY = {"seconds", "training", "peak_memory", "benchmark", "images_per_second", "path", "data"}
PLAN = """
title = "One cell"
architectures = ["resnet8"]
max-images = [32]
[data.signs]
folder = "cifar10"
defense-images = 32
[attack]
epochs = 1
[attacks.badnets]
[defenses.bcu]
epochs = 1
[images.own]
[[models]]
seeds = [0]
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that writes.

    Args:
        words: Its words; ``OUT`` stands for the folder that it writes to.
        resumes: Whether it takes ``--resume``.
        forked: Whether it may be forked from a process that has imported torch.
        code: What it ends with where nothing happens; -1 where that is a verdict, which may be any.
    """

    words: tuple[str, ...]
    resumes: bool = False
    forked: bool = True
    code: int = 0


@dataclass(frozen=True, kw_only=True)
class End:
    """How a run ended, and how long it took to end once it was asked to."""

    code: int
    seconds: float
    asked_at: float | None
    err: str


def commands(root: Path) -> dict[str, Command]:
    """The commands, on images and a model below ``root``."""
    model, photos, data = f"{root}/model.safetensors", f"{root}/photos", f"{root}/cifar10"
    small = ("--epochs", "1", "--batch-size", "16")
    attack = ("--data", data, "--arch", "resnet8", *small)
    cleanse = ("cleanse", model, "--images", photos, "--max-images", "64", "--out", "OUT/clean.safetensors")
    nad = ("--method", "nad", "--pseudo-labels", "--format", "pickle")
    trigger = f"{root}/model.trigger.safetensors"
    pages = ("--page", "OUT/page.html", "--preview", "OUT/preview.png")
    of_plan = ("--data-root", str(root), "--jobs", "1")
    return {
        "cleanse": Command(words=(*cleanse, "--method", "bcu", *small), resumes=True),
        "cleanse (a process)": Command(
            words=(*cleanse, "--method", "bcu", *small), resumes=True, forked=False
        ),
        "cleanse to a pickle": Command(words=(*cleanse, *nad, *small), resumes=True),
        "attack": Command(
            words=("attack", "badnets", *attack, "--out", "OUT/bad.safetensors", "--preview", "OUT/p.png"),
            resumes=True,
        ),
        "attack all": Command(
            words=("attack", "all", *attack, "--only", "badnets", "--jobs", "1", "--out", "OUT/zoo"),
            forked=False,
            code=-1,
        ),
        "evaluate": Command(words=("evaluate", model, "--data", data, "--trigger", trigger, *pages)),
        "benchmark": Command(
            words=("benchmark", f"{root}/plan.toml", "--out", "OUT/results", *of_plan), forked=False
        ),
    }


def prepare(root: Path) -> None:
    """Make the images, the model and the plan."""
    signs.write_folder(root / "cifar10" / "train", 10, seed=1)
    signs.write_folder(root / "cifar10" / "test", 6, seed=2)
    signs.write_folder(root / "photos", 10, seed=3, labelled=False)
    (root / "plan.toml").write_text(PLAN)
    words = f"attack badnets --data {root}/cifar10 --arch resnet8 --epochs 1 --out {root}/model.safetensors"
    ended = run(Command(words=tuple(words.split())), root, None, None)
    if ended.code:
        raise SystemExit(ended.err)


def run(command: Command, out: Path, number: int | None, after: float | None, *, again: bool = False) -> End:
    """Run a command, send it a signal after a time, and wait for it and all that it has started."""
    words = [word.replace("OUT", str(out)) for word in command.words]
    words += ["--resume"] if again and command.resumes else []
    with tempfile.TemporaryFile() as err:
        started = time.monotonic()
        process = os.fork()
        if process == 0:
            _become(words, err.fileno(), forked=command.forked)
        asked_at, code = None, None
        while code is None:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
            elif after is not None and asked_at is None and time.monotonic() - started >= after:
                asked_at = time.monotonic()
                os.kill(process, number or 0)
            elif asked_at is not None and time.monotonic() - asked_at > SECONDS_TO_END:
                os.kill(process, signal.SIGKILL)
            else:
                time.sleep(0.002)
        seconds = time.monotonic() - (asked_at or started)
        _wait_for_orphans()
        err.seek(0)
        return End(code=code, seconds=seconds, asked_at=asked_at, err=err.read().decode(errors="replace"))


def _become(words: list[str], err: int, *, forked: bool) -> None:
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nowhere, 0), (nowhere, 1), (err, 2)):
        os.dup2(source, target)
    if not forked:
        os.execv(sys.executable, [sys.executable, "-m", "bcu_cli", *words])  # noqa: S606 - our own program
    resume.SECONDS_BETWEEN = resume.COSTS_BETWEEN = 0.0
    sys.argv = ["bcu", *words]
    try:
        command_line.main()
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(int(end.code or 0))


def _wait_for_orphans() -> None:
    """Wait for what the run has started, which is this process's own since the run has ended."""
    deadline = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return
    raise SystemExit("a process outlived its run")


def written(out: Path) -> dict[str, bytes]:
    """The files below a folder; of JSON what does not depend on the moment."""
    found = {}
    for file in sorted(out.rglob("*")):
        if file.is_symlink() or file.is_dir():
            continue
        content = file.read_bytes()
        if file.suffix == ".json":
            content = json.dumps(_steady(json.loads(content)), sort_keys=True).encode()
        found[str(file.relative_to(out))] = content
    return found


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(each) for key, each in value.items() if key not in UNSTEADY}
    return [_steady(each) for each in value] if isinstance(value, list) else value


class Study:
    """Kills of one command, and what became of them."""

    def __init__(self, name: str, command: Command, root: Path, chance: random.Random) -> None:
        self.name, self.command, self.chance = name, command, chance
        self.out = root / "out"
        self.counts: Counter[str] = Counter()
        self.signals: Counter[str] = Counter()
        self.slowest = 0.0
        self.faults: list[str] = []
        started = time.monotonic()
        reference = self._run(None, None)
        self.seconds = time.monotonic() - started
        self.expected = written(self.out)
        self.code = reference.code
        if reference.code > 2 or command.code not in {-1, reference.code}:
            raise SystemExit(f"{name} ended with {reference.code}: {reference.err}")
        print(f"{name}: {self.seconds:.1f} s, {', '.join(self.expected)}", file=sys.stderr)

    def _run(self, number: int | None, after: float | None, *, again: bool = False) -> End:
        if not again:
            shutil.rmtree(self.out, ignore_errors=True)
            self.out.mkdir()
        return run(self.command, self.out, number, after, again=again)

    def chain(self, most: int) -> int:
        """Kill a run up to ``most`` times in a row, and finish it; returns how many times it was killed."""
        kills = 0
        for again in range(self.chance.randint(1, min(most, MOST_IN_A_ROW))):
            number = self.chance.choice(SIGNALS)
            end = self._run(number, self.chance.uniform(0.0, self.seconds), again=again > 0)
            if end.asked_at is None:
                self.counts["ended before the signal"] += 1
                break
            kills += 1
            self._killed(number, end)
        end = self._run(None, None, again=True)
        found = written(self.out)
        self.counts["compared"] += 1
        if end.code != self.code or found != self.expected:
            differ = [name for name in found.keys() | self.expected.keys()
                      if found.get(name) != self.expected.get(name)]  # fmt: skip
            self.faults.append(f"finished with {end.code}, other bytes in {sorted(differ)}: {end.err[-300:]}")
        else:
            self.counts["bytes equal"] += 1
        return kills

    def _killed(self, number: signal.Signals, end: End) -> None:
        self.signals[number.name] += 1
        self.counts[f"code {end.code}"] += 1
        if number is not signal.SIGKILL:
            self.slowest = max(self.slowest, end.seconds)
        if "Traceback" in end.err:
            self.faults.append(f"a traceback after {number.name}: {end.err[-500:]}")
        expected = {-signal.SIGKILL, self.code} if number is signal.SIGKILL else {130, self.code}
        if end.code not in expected:
            self.faults.append(f"code {end.code} after {number.name}: {end.err[-300:]}")
        names = [file.name for file in self.out.rglob("*") if not file.is_dir()]
        if left := [name for name in names if name.startswith(".bcu-")]:
            self.counts["left behind"] += len(left)
            self.faults.append(f"left after {number.name}: {left}")
        if any(name.endswith(".resume") for name in names):
            self.counts["with a state"] += 1

    def document(self) -> dict[str, Any]:
        """What became of them, as plain values."""
        return {
            "command": " ".join(self.command.words),
            "kills": sum(self.signals.values()),
            "signals": dict(sorted(self.signals.items())),
            **dict(sorted(self.counts.items())),
            "seconds_of_a_run": round(self.seconds, 2),
            "slowest_end_in_seconds": round(self.slowest, 2),
            "faults": self.faults,
        }


def main() -> None:
    """Kill, go on, compare, and write what was counted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="Names of commands, with commas.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    for number in SIGNALS[1:]:
        signal.signal(number, signal.default_int_handler)  # what is ignored here would be so there
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bcu-kills-") as name:
        root = Path(name)
        prepare(root)
        chance = random.Random(given.seed)
        chosen = given.only.split(",") if given.only else None
        studies = [
            Study(name, command, root, chance)
            for name, command in commands(root).items()
            if chosen is None or name in chosen
        ]
        kills = 0
        while kills < given.kills and time.monotonic() - started < 60 * given.minutes:
            study = min(studies, key=lambda each: (1 + sum(each.signals.values())) * each.seconds**0.5)
            kills += study.chain(given.kills - kills)
            print(f"{kills} kills, {study.name}: {dict(study.counts)}", file=sys.stderr)
    document = {
        "made": {
            "bcu": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "seconds": round(time.monotonic() - started),
            "seed": given.seed,
        },
        "kills": kills,
        "compared": sum(study.counts["compared"] for study in studies),
        "bytes_equal": sum(study.counts["bytes equal"] for study in studies),
        "left_behind": sum(study.counts["left behind"] for study in studies),
        "faults": sum(len(study.faults) for study in studies),
        "commands": {study.name: study.document() for study in studies},
    }
    text = json.dumps(document, indent=2).replace(name, "DATA") + "\n"
    if given.out:
        given.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
