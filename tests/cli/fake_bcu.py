"""Stands in for ``bcu cleanse`` and the jobs of attack and evaluate: writes what a folder tells it to.

Beside this file's options the environment names a folder, ``FAKE_BCU``: there ``behaviour.json`` may say what
is to ``fail`` (parts of command lines), how many ``seconds`` each takes, and the measures ``before`` and
``after`` by parts of command lines, and which are ``judged`` badly; each start and end is added to ``log``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

if sys.argv[1].startswith("{"):
    job = json.loads(sys.argv[1])
    command = job["kind"].removesuffix("Request").lower()
    words = [command, job.get("attack", ""), sys.argv[1]]
else:
    job, (command, *words) = {}, sys.argv[1:]
plain = [word for word in words if not word.startswith("--")]
options = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))
home = Path(os.environ["FAKE_BCU"])
told = json.loads((home / "behaviour.json").read_text()) if (home / "behaviour.json").exists() else {}
whole = " ".join([command, *words] if not job else words)


def log(what: str) -> None:
    with (home / "log").open("a") as file:
        line = {
            "what": what,
            "command": command,
            "plain": plain,
            "options": options,
            "words": words,
            "job": job,
        }
        file.write(json.dumps(line) + "\n")


def stop(number: int, frame: object) -> None:
    log("stop")
    sys.exit(130)


def write(path: Path, content: str) -> dict[str, str]:
    path.write_text(content)
    return {"path": str(path), "sha256": hashlib.sha256(content.encode()).hexdigest()}


def measured(side: str, acc: float, asr: float) -> dict[str, object]:
    for part, values in told.get(side, {}).items():
        if part in whole:
            acc, asr = values
    return {"acc": {"value": acc}, "asr": {"value": asr}, "ra": {"value": 0.5}}


signal.signal(signal.SIGTERM, stop)
log("start")
time.sleep(told.get("seconds", 0))
if any(part in whole for part in told.get("fail", [])):
    sys.stdout.write(json.dumps({"error": {"message": "it is too hot", "hint": "wait for winter"}}))
    sys.exit(2)
report = {"versions": {"bcu": "0", "torch": "0"}, "device": {"name": "fake", "precision": "fp32"}}
if command == "attack":
    out = Path(job["out"]["path"])
    trigger = out.with_name(out.name.removesuffix(".safetensors") + ".trigger.safetensors")
    report["outputs"] = {"model": write(out, whole), "trigger": write(trigger, "trigger " + whole)}
elif command == "cleanse":
    assert Path(plain[0]).exists()
    report |= {"images": {"used": int(options["max-images"])}, "output": write(Path(options["out"]), whole)}
else:
    models = [model["path"] for model in job["models"]]
    assert all(Path(file).exists() for file in [*models, job["triggers"]["name"]])
    report["models"] = [measured("before", 0.9, 1.0), measured("after", 0.8, 0.25)]
log("end")
judged = command == "cleanse" and any(part in whole for part in told.get("judged", []))
if judged:
    report |= {"verdict": {"word": "not cleansed", "why": "it is not"}}
    if "--force" not in words:
        Path(report["output"]["path"]).unlink()
        report["output"] = None
sys.stdout.write(json.dumps(report))
sys.exit(1 if judged else 0)
