"""The corpus of hostile, broken and foreign files: each ends in a finding or a refusal, and none runs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hostile
import hostile_forms
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcu_cli.checkpoints import inspect_only, read
from bcu_cli.errors import CheckpointError
from bcu_cli.workflows.inspection import inspect_file

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS, BYTES = 20.0, 2**30
INSPECT_ALL = """
import json, sys, time
from pathlib import Path
from bcu_cli.workflows.inspection import inspect_file
reports = []
for path in map(Path, sys.argv[1:]):
    started = time.process_time()
    report = inspect_file(path).document()
    report["seconds"] = time.process_time() - started
    reports.append(report)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"files": reports, "peak": 1024 * int(status["VmHWM"].split()[0])}, allow_nan=False))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    hostile.write(folder)
    return folder


@pytest.fixture(scope="module")
def inspected(corpus: Path) -> dict[str, Any]:
    """What a process of its own says of every file; its peak of memory is an upper bound for each."""
    paths = sorted(path for kind in corpus.iterdir() for path in kind.iterdir())
    command = [sys.executable, "-c", INSPECT_ALL, *map(str, paths)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def of(inspected: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {Path(f["path"]).name: f for f in inspected["files"] if Path(f["path"]).parent.name == kind}


def test_it_is_large_enough(inspected: dict[str, Any]) -> None:
    assert len(of(inspected, "hostile")) + len(of(inspected, "broken")) >= 60
    assert len(of(inspected, "harmless")) == 11


def test_what_could_run_is_a_finding(inspected: dict[str, Any], corpus: Path) -> None:
    wrong = [
        name
        for name, file in of(inspected, "hostile").items()
        if file["safe"] is not False and name.partition(".")[0] not in hostile.REFUSED
    ]
    assert wrong == []
    assert not (corpus / "canary").exists()


@pytest.mark.parametrize("kind", ["hostile", "broken", "foreign"])
def test_nothing_else_passes(inspected: dict[str, Any], kind: str) -> None:
    passed = [name for name, f in of(inspected, kind).items() if f["safe"] is not False and not f["problem"]]
    assert passed == []


def test_the_harmless_ones_are_read(inspected: dict[str, Any]) -> None:
    assert {
        name: (f["safe"], f["tensors"]) for name, f in of(inspected, "harmless").items()
    } == dict.fromkeys(hostile.harmless(), (True, 4))


def test_no_file_is_refused_with_torchs_advice_to_open_it_unsafely(inspected: dict[str, Any]) -> None:
    said = json.dumps(inspected["files"])
    assert "weights_only" not in said
    assert "safe_globals" not in said


def test_no_file_takes_much_time_or_memory(inspected: dict[str, Any]) -> None:
    assert max(file["seconds"] for file in inspected["files"]) < SECONDS
    assert inspected["peak"] < BYTES


def test_no_file_shows_a_traceback(corpus: Path, bcu) -> None:
    ran = bcu("inspect", corpus)  # the fixture looks for tracebacks
    assert ran.code == 1
    assert not (corpus / "canary").exists()


def test_what_a_file_says_of_itself_cannot_drive_the_terminal(tmp_path: Path, bcu) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    save_file(
        {"a.weight": zeros(2, 2)}, tmp_path / "m.safetensors", {"note": "\x1b[2J\x1b]0;owned\x07\u202e"}
    )
    ran = bcu("inspect", tmp_path / "m.safetensors")
    assert "\x1b" not in ran.out + ran.err
    assert "\\x1b[2J" in ran.out
    assert "\\u202e" in ran.out


def test_lists_that_share_their_parts_do_not_blow_up(tmp_path: Path, bcu) -> None:
    (tmp_path / "m.pt").write_bytes(hostile.saved(hostile.shared(hostile.Small().state_dict())))
    (file,) = bcu("inspect", tmp_path / "m.pt", "--json").json["files"]
    assert file["safe"] is True
    assert file["left_out"] == ["log"]


# Fuzzing: a good file of each format with bytes changed, cut out or put in is read or refused.
SEEDS: dict[str, Callable[[], bytes]] = {
    "safetensors": lambda: hostile.harmless()["model.safetensors"],
    "zip": lambda: hostile.harmless()["checkpoint.pth.tar"],
    "legacy": lambda: hostile.harmless()["state_dict_legacy.pth"],
    "script": lambda: hostile.harmless()["script.pt"],
    "exported": lambda: hostile.exported(hostile.Small().eval()),
    "onnx": lambda: hostile.harmless()["model.onnx"],
    "pickle": lambda: hostile.obfuscated(Path("/nowhere/canary"))["stack_global_memo"],
    "image": lambda: hostile_forms.pickles(Path("/nowhere/canary"))["behind_gif"],
    "tar": hostile_forms.image_and_tar,
    "large zip": lambda: hostile_forms.two_directories({"a/data.pkl": b"N."}, b"N."),
    "index": lambda: b'{"metadata": {}, "weight_map": {"a.weight": "a.safetensors", "b": "b.safetensors"}}',
}
CASES = 150


@pytest.mark.parametrize("form", SEEDS)
def test_mutated_files_are_read_or_refused(tmp_path: Path, form: str) -> None:
    good = SEEDS[form]()
    path = tmp_path / "model"
    edits = st.lists(
        st.tuples(st.integers(0, len(good) - 1), st.integers(0, 16), st.binary(max_size=16)),
        min_size=1,
        max_size=4,
    )

    @settings(max_examples=CASES, database=None, suppress_health_check=list(HealthCheck))
    @given(edits)
    def check(edits: list[tuple[int, int, bytes]]) -> None:
        data = good
        for start, count, put in edits:
            data = data[:start] + put + data[start + count :]
        path.write_bytes(data)
        for look in (inspect_only, read):
            with contextlib.suppress(CheckpointError):
                look(path)
        inspect_file(path).document()

    check()
