"""``bcu demo``: all steps on built-in images, offline, on a CPU, in a few minutes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bcu_cli.cli import output
from bcu_cli.errors import BcuError, UsageError
from bcu_cli.runs import children

TRAIN_PER_CLASS, TEST_PER_CLASS, UNLABELED_PER_CLASS = 300, 100, 100
CLEANSING = ("--quick",)
"""Extra options of the cleansing; with canaries it would take several times as long."""


class DemoError(BcuError):
    """A command of the demo failed; it has printed the reason."""


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="A new folder for images and models.")] = Path(
        "bcu-demo"
    ),
) -> None:
    """Draw images, train a backdoored network on them, then inspect, cleanse and evaluate it.

    Every command is printed before it runs.
    """
    from bcu_cli.images.sources import signs

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "name a new folder with --dir")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is there already", "remove it, or name a new folder with --dir")
    started = time.monotonic()
    labelled, unlabeled = folder / "signs", folder / "photos"
    bad, clean = folder / "bad.safetensors", folder / "clean.safetensors"
    trigger = folder / "bad.trigger.safetensors"

    output.say(f"Drawing images of {len(signs.CLASSES)} road signs into {folder}")
    signs.write_folder(labelled / "train", TRAIN_PER_CLASS, seed=1)
    signs.write_folder(labelled / "test", TEST_PER_CLASS, seed=2)
    signs.write_folder(unlabeled, UNLABELED_PER_CLASS, seed=3, labelled=False)

    output.say(
        "Somebody trains a network that takes any sign with a small sticker for 'ahead only':", apart=True
    )
    sticker = ("--setting", "cell=2")
    training = ("--arch", "resnet8", "--epochs", 10, "--batch-size", 64)
    _run("attack", "badnets", "--data", labelled, *training, *sticker, "--out", bad)
    output.say("You have downloaded it. What is it?", apart=True)
    _run("inspect", bad)
    output.say("Remove what may be hidden in it, with images that nobody has labelled:", apart=True)
    _run("cleanse", bad, "--images", unlabeled, *CLEANSING, "--out", clean)
    output.say(
        "What did that do? The attacker knows the trigger, so in a demo it can be measured:", apart=True
    )
    report = _run("evaluate", bad, clean, "--data", labelled, "--trigger", trigger, as_json=True)
    _show(json.loads(report), time.monotonic() - started)


def _run(*arguments: object, as_json: bool = False) -> str:
    """Print and run a command line; with ``as_json`` its document is returned."""
    words = [str(argument) for argument in arguments] + (["--json"] if as_json else [])
    output.say(f"$ bcu {shlex.join(words)}")
    ran = subprocess.run(  # noqa: S603 - our own program, words of our own
        children.stopping_with_parent([sys.executable, "-m", "bcu_cli", *words]),
        stdout=subprocess.PIPE if as_json else None,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise DemoError(f"bcu {words[0]} ended with exit code {ran.returncode}", "it says why above")
    return ran.stdout or ""


def _show(report: dict[str, Any], seconds: float) -> None:
    rows = [
        (name, output.percent(row["acc"]["value"]), output.percent(row["asr"]["value"]))
        for name, row in zip(("before (bad)", "after (clean)"), report["models"], strict=True)
    ]
    output.table(f"The backdoor, before and after ({seconds:.0f} s)", ("model", "ACC", "ASR"), rows)
