"""Stands in for the job of an attack: writes a model, a trigger and a report, as the folder of images says.

In that folder ``behaviour.json`` may name entries that are to ``fail``, ``die`` or be ``slow``, and say their
``acc``, ``asr`` and ``images``; every start and end is added to ``log``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

request = json.loads(sys.argv[1])
attack, data, out = request["attack"], Path(request["data"]), Path(request["out"]["path"])
name = out.name.removesuffix(".safetensors")
told = json.loads((data / "behaviour.json").read_text()) if (data / "behaviour.json").exists() else {}
state = out.with_name(out.name + ".resume")


def log(what: str) -> None:
    with (data / "log").open("a") as file:
        file.write(json.dumps({"what": what, "name": name, "pid": os.getpid(), "request": request,
                               "threads": os.environ["OMP_NUM_THREADS"]}) + "\n")  # fmt: skip


def stop(number: int, frame: object) -> None:
    state.write_text("kept")
    log("stop")
    sys.exit(130)


def write(path: Path, *parts: str) -> dict[str, str]:
    content = " ".join([name, *parts]).encode()
    path.write_bytes(content)
    return {"path": str(path), "sha256": hashlib.sha256(content).hexdigest()}


signal.signal(signal.SIGTERM, stop)
log("start")
sys.stderr.write("warning: 2 files are no images\n")
if name in told.get("slow", []) and not state.exists():
    time.sleep(60)
time.sleep(told.get("seconds", 0))
if name in told.get("fail", []):
    sys.stdout.write(
        json.dumps({"error": {"message": "there is no class 9", "hint": "--target-class takes 0 to 8"}})
    )
    sys.exit(2)
if name in told.get("die", []):
    os.kill(os.getpid(), signal.SIGKILL)
report = {
    "schema_version": 2,
    "device": {"type": "cpu", "name": "fake", "precision": "fp32"},
    "images": {"sha256": told.get("images", {}).get(name, "the same")},
    "acc": {"value": told.get("acc", {}).get(name, 0.9)},
    "outputs": {"model": write(out, "model")},
    "seconds": {"total": 1.5},
}
if attack != "none":
    report["asr"] = {"value": told.get("asr", {}).get(name, 0.99)}
    report["ra"] = {"value": 0.01}
    report["outputs"]["trigger"] = write(out.with_suffix(".trigger.safetensors"), "trigger")
state.unlink(missing_ok=True)
log("end")
sys.stdout.write(json.dumps(report))
