"""Compare what two versions of bcu write: the proof of a rebuilding that changes no behaviour.

    python examples/compare_versions.py BEFORE AFTER --out compared.json

``BEFORE`` and ``AFTER`` are checkouts. Each command runs once in each, with one seed, on the CPU and with the
same built-in images. The files that it writes are compared byte by byte, its JSON document value by value.
Left out are times, memory and versions, which differ from run to run. Fields that were renamed are named with
``--renamed OLD=NEW``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VARYING = {"seconds", "peak_memory", "versions", "training", "files_read", "schema_version"}
"""Fields that tell of the run and not of its result; ``files_read`` holds the paths of each version."""
TRAINED = "--arch resnet8 --epochs 2 --batch-size 64"
COMMANDS = {
    "attack badnets": f"attack badnets --data signs {TRAINED} --setting cell=2 --out bad.safetensors",
    "attack iab": f"attack iab --data signs {TRAINED} --out iab.safetensors",
    "cleanse bcu": "cleanse bad.safetensors --images photos --method bcu --epochs 2 --out bcu.safetensors",
    "cleanse quick": "cleanse bad.safetensors --images photos --quick --epochs 1 --force --out q.safetensors",
    "cleanse ft": "cleanse bad.safetensors --images signs/test --method ft --epochs 2 --out ft.safetensors",
    "evaluate": "evaluate bad.safetensors bcu.safetensors --data signs --trigger bad.trigger.safetensors",
}
"""Command lines; each writes into the folder that it runs in."""

DRAW = """
from pathlib import Path
try:
    from bcu_cli.images.sources import signs
except ImportError:  # before the rooms had folders
    from bcu_cli.images import signs
signs.write_folder(Path("signs/train"), 40, seed=1)
signs.write_folder(Path("signs/test"), 20, seed=2)
signs.write_folder(Path("photos"), 30, seed=3, labelled=False)
"""


def main() -> int:
    """Run every command in both versions; returns 0 where all results are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    parser.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW", help="a renamed field")
    options = parser.parse_args()
    renamed = dict(each.split("=", 1) for each in options.renamed)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        sides = [_run_all(version.resolve(), Path(place, name)) for version, name in
                 ((options.before, "before"), (options.after, "after"))]  # fmt: skip
        for name in COMMANDS:
            (files, document, code), (files_after, document_after, code_after) = (
                side[name] for side in sides
            )
            different = sorted(
                each for each in files | files_after if files.get(each) != files_after.get(each)
            )
            fields = list(_differences(_renamed(document, renamed), document_after))
            found[name] = {"same_exit_code": code == code_after, "exit_code": code, "files": sorted(files),
                           "different_files": different, "different_fields": fields}  # fmt: skip
            same = code == code_after and not different and not fields
            print(
                f"{name}: {'the same' if same else 'DIFFERENT'}; files {', '.join(sorted(files)) or 'none'}"
            )
            for each in [*different, *fields]:
                print(f"    {each}")
    commits = {
        side: _commit(version) for side, version in (("before", options.before), ("after", options.after))
    }
    if options.out:
        options.out.write_text(json.dumps({**commits, "commands": found}, indent=1) + "\n")
    bad = [one for one in found.values() if one["different_files"] or one["different_fields"]]
    return 1 if bad or not all(one["same_exit_code"] for one in found.values()) else 0


def _run_all(version: Path, place: Path) -> dict[str, tuple[dict[str, str], Any, int]]:
    """The new files' hashes, the document and the exit code of each command."""
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(version), "OMP_NUM_THREADS": "1"}
    subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", DRAW], cwd=place, env=environment, check=True
    )
    results = {}
    for name, words in COMMANDS.items():
        before = _hashes(place)
        command = [sys.executable, "-m", "bcu_cli", *words.split(), "--json", "--device", "cpu"]
        ran = subprocess.run(  # noqa: S603 - our own program
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        if not ran.stdout:
            sys.exit(f"{version}: {name}: {ran.stderr}")
        after = _hashes(place)
        new = {each: digest for each, digest in after.items() if before.get(each) != digest}
        results[name] = (new, json.loads(ran.stdout), ran.returncode)
    return results


def _hashes(place: Path) -> dict[str, str]:
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in place.glob("*.*")}


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(name, name): _renamed(each, names) for name, each in value.items()}
    return [_renamed(each, names) for each in value] if isinstance(value, list) else value


def _differences(one: Any, other: Any, where: str = "") -> Any:
    """The places where two documents differ, but for what varies anyhow."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other} - VARYING):
            if name not in one or name not in other:
                yield f"{where}.{name} is in one alone"
            else:
                yield from _differences(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(a, b, f"{where}[{i}]")
    elif one != other:
        yield f"{where}: {one!r} -> {other!r}"[:300]


def _commit(version: Path) -> str:
    command = ["git", "-C", str(version), "rev-parse", "--short=10", "HEAD"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - of our own
    return ran.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
