"""Stands in for the jobs of attack, cleanse and evaluate: writes what a folder tells it to.

The environment names that folder, ``FAKE_BCU``: there ``behaviour.json`` may say what is to ``fail`` (parts
of jobs), how many ``seconds`` each takes, and the measures ``before`` and ``after`` by parts of jobs, and
which are ``judged`` badly; each start and end is added to ``log``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

job = json.loads(sys.argv[1])
command = job["kind"].removesuffix("Request").lower()
words = [command, job.get("attack", ""), sys.argv[1]]
home = Path(os.environ["FAKE_BCU"])
told = json.loads((home / "behaviour.json").read_text()) if (home / "behaviour.json").exists() else {}
whole = " ".join(words)


def log(what: str) -> None:
    with (home / "log").open("a") as file:
        line = {
            "what": what,
            "command": command,
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
    assert Path(job["model"]["path"]).exists()
    report |= {"images": {"used": job["max_images"]}, "output": write(Path(job["out"]["path"]), whole)}
    write(Path(job["out"]["path"] + ".intoto.json"), "provenance")
else:
    models = [model["path"] for model in job["models"]]
    assert all(Path(file).exists() for file in [*models, job["triggers"]["name"]])
    report["models"] = [measured("before", 0.9, 1.0), measured("after", 0.8, 0.25)]
log("end")
judged = command == "cleanse" and any(part in whole for part in told.get("judged", []))
if judged:
    report |= {"verdict": {"word": "not cleansed", "why": "it is not"}}
    if not job["force"]:
        Path(report["output"]["path"]).unlink()
        Path(report["output"]["path"] + ".intoto.json").unlink()
        report["output"] = None
sys.stdout.write(json.dumps(report))
sys.exit(1 if judged else 0)
