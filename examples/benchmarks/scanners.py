"""What bcu and other scanners of model files say of one corpus: a table, and what each says of each file.

    python tests/hostile.py runs/corpus
    python tests/ordinary.py runs/corpus
    python examples/benchmarks/scanners.py runs/corpus

The scanners must be on the PATH (``pip install modelscan picklescan fickling modelaudit`` into an environment
of their own, and that environment's bin after bcu's). Each is run with its defaults, once a file. Its
documented exit codes decide: found something, calls the file clean, or could not read it. bcu and modelaudit
are given whole folders, and their JSON documents decide. For bcu it counts whether it calls a file safe. For
modelaudit it counts whether it has an issue of severity "warning" or "critical", or lists the file as read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KINDS = ("hostile", "broken", "foreign", "harmless", "ordinary")
FOUND, CLEAN, UNREAD = "found", "clean", "unread"
SCANNERS: dict[str, tuple[list[str], dict[int, str]]] = {  # command, and what its exit codes mean
    "picklescan": (["picklescan", "-p"], {0: CLEAN, 1: FOUND, 2: UNREAD}),
    "modelscan": (["modelscan", "-p"], {0: CLEAN, 1: FOUND, 2: UNREAD, 3: UNREAD}),
    "fickling": (
        ["fickling", "--check-safety", "--json-output", os.devnull],
        {0: CLEAN, 1: FOUND, 2: UNREAD},
    ),
}


def verdict(scanner: str, path: Path) -> str:
    """What a scanner says of one file."""
    command, meanings = SCANNERS[scanner]
    ran = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 - those above
    return meanings.get(ran.returncode, f"exit {ran.returncode}")


def verdicts_of_bcu(folder: Path) -> dict[str, str]:
    """What bcu says of each file of a folder, by name."""
    command = ["bcu", "inspect", *map(str, sorted(folder.iterdir())), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)  # noqa: S603 - bcu
    meanings = {True: CLEAN, False: FOUND, None: UNREAD}
    return {Path(file["path"]).name: meanings[file["safe"]] for file in json.loads(ran.stdout)["files"]}


def verdicts_of_modelaudit(folder: Path) -> dict[str, str]:
    """What modelaudit says of each file of a folder, by name; it reports its use to nobody."""
    report = folder.parent / f"modelaudit-{folder.name}.json"
    command = ["modelaudit", "scan", str(folder), "--format", "json", "--output", str(report)]
    quiet = {"PROMPTFOO_DISABLE_TELEMETRY": "1", "NO_ANALYTICS": "1"}
    subprocess.run(command, capture_output=True, env=os.environ | quiet, timeout=3600, check=False)  # noqa: S603 - modelaudit
    content = json.loads(report.read_text())

    def name_of(location: str) -> str:
        inside = location.partition(f"{folder.resolve()}/")[2]
        names = [file.name for file in folder.iterdir() if inside.startswith(file.name)]
        return max(names, key=len, default="")

    said = dict.fromkeys((file.name for file in sorted(folder.iterdir())), UNREAD)
    said |= {name_of(asset["path"]): CLEAN for asset in content["assets"] if name_of(asset["path"])}
    for issue in content["issues"]:
        if issue["severity"] in {"warning", "critical"} and (name := name_of(str(issue["location"]))):
            said[name] = FOUND
    return said


def main() -> None:
    """Run all scanners on the files of all kinds that are there, and print how often each says what."""
    root = Path(sys.argv[1])
    there = [kind for kind in KINDS if (root / kind).is_dir()]
    said = {"bcu": {kind: verdicts_of_bcu(root / kind) for kind in there}}
    if shutil.which("modelaudit"):
        said["modelaudit"] = {kind: verdicts_of_modelaudit(root / kind) for kind in there}
    with ThreadPoolExecutor(max_workers=2) as pool:
        for kind in there:
            files = sorted((root / kind).iterdir())
            for scanner in SCANNERS:
                verdicts = pool.map(verdict, [scanner] * len(files), files)
                said.setdefault(scanner, {})[kind] = dict(
                    zip((file.name for file in files), verdicts, strict=True)
                )
    (root / "verdicts.json").write_text(json.dumps(said, indent=1))
    for kind in there:
        for scanner, kinds in said.items():
            counts = [f"{list(kinds[kind].values()).count(what)} {what}" for what in (FOUND, UNREAD, CLEAN)]
            print(f"{kind:9} {len(kinds[kind]):4} {scanner:11} {', '.join(counts)}")
    print("something ran" if (root / "canary").exists() else "nothing of the corpus ran")


if __name__ == "__main__":
    main()
