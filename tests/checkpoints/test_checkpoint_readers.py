"""Files that other readers read otherwise, or never come to the end of: found or refused, and at once."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import runpy
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hostile
import hostile_forms
import numpy as np
import pytest
import torch
from checkpoint_files import saved_bytes, zip_of
from PIL import Image

from bcu_cli.checkpoints import inspect_only, read
from bcu_cli.checkpoints.archive import TorchArchive
from bcu_cli.checkpoints.pickles.inspection import BrokenPickleError, inspect_pickle
from bcu_cli.checkpoints.pickles.machine import follow
from bcu_cli.checkpoints.shards import read_index
from bcu_cli.checkpoints.zip_directory import ZipError, ends_as_zip, read_members
from bcu_cli.errors import CheckpointError, UnsafeFileError
from bcu_cli.workflows.inspection import find_files, inspect_file

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/readers.py"
CASES = 300


@pytest.mark.parametrize("kind", ["archives", "pickles"])
def test_other_readers_see_the_same_or_bcu_refuses(kind: str) -> None:
    compared = runpy.run_path(str(SCRIPT))["count"](kind, CASES)
    assert compared["differing"] == []
    assert compared["cases"] == sum(compared["counts"].values()) == CASES
    assert compared["counts"]["same" if kind == "archives" else "harmless"] > 0
    assert not any(word.startswith("bcu ends") for word in compared["counts"])


def test_a_frame_hides_a_program_from_all_readers_but_one(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "m.pkl"
    path.write_bytes(hostile_forms.hidden_by_a_frame(canary))
    assert "GLOBAL" not in {opcode.name for opcode, *_ in pickletools.genops(path.read_bytes())}
    assert [finding.rule for finding in inspect_only(path).findings] == ["pickle-ambiguous"]
    assert not canary.exists()
    code = f"import io, pickle; pickle.load(io.BytesIO(open({str(path)!r}, 'rb').read()))"  # as torch does
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert canary.exists()  # it is as hostile as it is said to be


def test_an_archive_of_two_directories_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    members = hostile.members_of(hostile.saved({"a": torch.ones(2)}))
    path.write_bytes(hostile_forms.two_directories(members, b"\x80\x02cos\nsystem\n."))
    with zipfile.ZipFile(path) as archive:
        of_python = archive.read("archive/data.pkl")
    of_torch = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    assert b"system" in of_torch
    assert b"system" not in of_python
    with pytest.raises(CheckpointError, match="locator"):
        inspect_only(path)


ODD = {
    "I 5\n": "ambiguous",
    "I\n": "ambiguous",
    "I0x10\n": "ambiguous",
    "I1_0\n": "ambiguous",
    "I+5\n": "ambiguous",
    "L 5L\n": "ambiguous",
    "L5\n": "ambiguous",
    "F1_0\n": "ambiguous",
    "F 1\n": "ambiguous",
    "I5\0junk\n": "ambiguous",
    "Np 0\n": "ambiguous",
    "Np-1\n": "ambiguous",
    "Ia text\n": "broken",
    "I5\n": "fine",
    "I01\n": "fine",
    "I-5\n": "fine",
    "L5L\n": "fine",
    "F1.5e-07\n": "fine",
    "F-inf\n": "fine",
    "Np0\n": "fine",
}


@pytest.mark.parametrize("line", ODD)
def test_numbers_are_read_only_as_python_writes_them(line: str) -> None:
    data = line.encode() + b"."
    if ODD[line] == "broken":
        with pytest.raises(BrokenPickleError):
            inspect_pickle(data)
    else:
        assert bool(inspect_pickle(data)) is (ODD[line] == "ambiguous")


@pytest.mark.parametrize("protocol", range(6))
def test_all_that_python_writes_is_followed(protocol: int) -> None:
    values: list[Any] = [
        *(
            [0, 1, -1, 255, 256, 2**31, -(2**31), 2**63, 10**30],
            [0.1, 1e300, -1e-9, float("inf"), float("nan")],
        ),
        *(["", "a\nb", "\\u", "é\N{EURO SIGN}", "\ud800", "x" * 70_000], [None, True, False], {}, (), (1,)),
        *((1, 2), (1, 2, 3), (1, 2, 3, 4), [[]] * 3, {"a": {"b": [1]}}, {1, 2}, {("a", 1): 2}),
    ]
    values.append(list(values))
    recursive: list[Any] = []
    recursive.append((recursive, recursive))
    for value in [*values, recursive]:
        data = pickle.dumps(value, protocol)
        assert follow(data).end == len(data)
        assert follow(pickletools.optimize(data)).end == len(pickletools.optimize(data))


def test_globals_that_python_writes_are_listed() -> None:
    for protocol in range(6):
        uses = follow(pickle.dumps([Path, complex(1, 2), pickle.PickleError], protocol)).uses
        assert {use.name and use.name.rpartition(".")[2] for use in uses} >= {
            "Path",
            "complex",
            "PickleError",
        }


@pytest.mark.parametrize("name", hostile_forms.misused())
def test_torchs_functions_are_called_as_torch_calls_them(tmp_path: Path, name: str) -> None:
    members = {"a/data.pkl": hostile_forms.misused()[name], "a/version": b"3\n"}
    with pytest.raises(CheckpointError, match=r"cannot be followed \(it (calls|changes)"):
        read(zip_of(tmp_path / "m.pt", members))


@pytest.mark.parametrize("name", hostile_forms.bombs())
@pytest.mark.parametrize("form", ["zip", "plain"])
def test_bombs_end_at_once(tmp_path: Path, name: str, form: str) -> None:
    data, path = hostile_forms.bombs()[name], tmp_path / "m.pt"
    path.write_bytes(data) if form == "plain" else zip_of(path, {"a/data.pkl": data, "a/version": b"3\n"})
    started = time.process_time()
    with pytest.raises(CheckpointError):
        read(path)
    assert time.process_time() - started < 5  # a second on an idle machine


def test_keys_and_sets_as_people_have_them_are_no_bombs(tmp_path: Path) -> None:
    value = {
        "state_dict": {f"layer{index}.weight": torch.zeros(2) for index in range(1500)},
        "pairs": {(index, str(index)): index for index in range(500)},
        "seen": set(range(20_000)),
        "ids": {index: index for index in range(20_000)},
        "random": random.Random(0).getstate(),
        "raw": bytes(range(256)) * 100,
    }
    (tmp_path / "m.pt").write_bytes(saved_bytes(value))
    assert len(read(tmp_path / "m.pt").tensors) == 1500


def test_plain_values_are_counted_all_together(tmp_path: Path) -> None:
    log = [1.0] * 90_000
    value = {"state_dict": {"a": torch.ones(1)}} | {f"log{index}": log for index in range(2000)}
    (tmp_path / "m.pt").write_bytes(saved_bytes(value))
    started = time.process_time()
    checkpoint = read(tmp_path / "m.pt")
    assert time.process_time() - started < 10
    assert 0 < len(checkpoint.extra_entries) < 20


def test_one_tensor_under_many_names_is_refused(tmp_path: Path) -> None:
    tensor = torch.ones(20_000)
    (tmp_path / "m.pt").write_bytes(saved_bytes({f"w{index}": tensor for index in range(500)}))
    with pytest.raises(CheckpointError, match="many times larger than the file"):
        read(tmp_path / "m.pt")


def test_attributes_of_a_table_or_a_tensor_do_not_take_the_place_of_its_methods(tmp_path: Path) -> None:
    tensor, table = torch.ones(2), OrderedDict(b=torch.zeros(1))
    tensor.xxxxxx = table.xxxxx = 3  # type: ignore[attr-defined]
    for value, old, new in [({"a": tensor}, b"xxxxxx", b"detach"), (table, b"xxxxx", b"items")]:
        members = hostile.members_of(saved_bytes(value))
        members["archive/data.pkl"] = members["archive/data.pkl"].replace(old, new)
        (tmp_path / "m.pt").write_bytes(hostile.zipped(members))
        assert list(read(tmp_path / "m.pt").tensors) == list(value)


@pytest.mark.parametrize("data", [b"\x80\x02(K\x01\x91.", b"\x80\x02N2\x86."])
def test_what_torchs_loader_does_not_read_is_read_for_what_it_is(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        read(zip_of(tmp_path / "m.pt", {"a/data.pkl": data, "a/version": b"3\n"}))


def test_only_what_torch_save_writes_is_in_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    members = hostile.members_of(saved_bytes({"a": torch.ones(5)}))
    path.write_bytes(hostile.zipped(members | {"archive/more.bin": b"x"}))
    assert [finding.rule for finding in inspect_only(path).findings] == ["archive-program"]
    with pytest.raises(UnsafeFileError, match=r"carries more\.bin"):
        read(path)
    for changed, words in [
        (members | {"archive/data/7": b"x"}, "does not use"),
        (members | {"archive/data/0": bytes(24)}, "has 24 bytes and claims 20"),
        ({name: data for name, data in members.items() if name != "archive/data/0"}, "lacks a storage"),
    ]:
        path.write_bytes(hostile.zipped(changed))
        with pytest.raises(CheckpointError, match=words):
            read(path)


def test_a_legacy_file_ends_with_its_last_storage(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    good = saved_bytes({"a": torch.ones(5), "b": torch.arange(3)}, _use_new_zipfile_serialization=False)
    for data, words in [
        (good + hostile.program(b"}"), "does not end with its last storage"),
        (good[:-1], "does not end with its last storage"),
        (good[:-60] + b"\x09" + good[-59:], "not of the size"),
    ]:
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=words):
            read(path)


@pytest.mark.parametrize("name", ["behind_gif", "behind_bmp", "behind_long_text", "behind_a_second_text"])
def test_programs_behind_images_and_texts_are_not_passed_over(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.dat"
    path.write_bytes(hostile_forms.pickles(tmp_path / "canary")[name])
    assert find_files([tmp_path]).files == [path]
    assert inspect_file(path).safe is False


def test_archives_behind_images_and_texts_are_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(hostile_forms.image_and_tar())
    (tmp_path / "b.png").write_bytes(hostile_forms.image_and_hdf5())
    (tmp_path / "c.gif").write_bytes(b"GIF89a" + bytes(500) + hostile.saved({"a": torch.ones(1)}) + b"tail")
    assert [file.name for file in find_files([tmp_path]).files] == ["a.jpg", "b.png", "c.gif"]


def test_a_text_that_is_too_long_to_tell_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"V" + b"x" * (17 * 2**20) + b"\n0cos\nsystem\n)R.")
    assert [file.name for file in find_files([tmp_path]).files] == ["a.txt"]
    assert inspect_file(tmp_path / "a.txt").safe is None


def test_images_and_texts_beside_models_are_passed_over(bcu, tmp_path: Path) -> None:
    random_ = np.random.default_rng(0)
    for size in [(1, 1), (40, 30), (300, 200)]:
        image = Image.fromarray(random_.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        for suffix in ("png", "jpg", "gif", "bmp", "webp", "tiff"):
            image.save(tmp_path / f"{size[0]}.{suffix}")
    texts = [
        "# Model card\n",
        "Info: a text\n",
        "The model\n" * 9000,
        "I am\n",
        "Final\n",
        "{}",
        "N.A. values\n",
    ]
    for index, text in enumerate(
        [*texts, "class,count\ncat,3\n", "Step 1\n", "loss\n0.5\n", "5\n6\n", "(a)\n"]
    ):
        (tmp_path / f"{index}.txt").write_text(text)
    (tmp_path / "m.pt").write_bytes(saved_bytes({"a": torch.ones(1)}))
    ran = bcu("inspect", tmp_path, "--json")
    assert [Path(file["path"]).name for file in ran.json["files"]] == ["m.pt"]
    assert len(ran.json["passed_over"]) == 30


def test_an_index_of_many_files_is_read_in_one_go(tmp_path: Path) -> None:
    names = [f"{index}.safetensors" for index in range(3000)]
    for name in names:
        (tmp_path / name).touch()
    entries = ",".join(f'"w{index}":"{names[index % 3000]}"' for index in range(90_000))
    (tmp_path / "m.index.json").write_text(f'{{"weight_map":{{{entries}}}}}')
    started = time.process_time()
    parts = read_index(tmp_path / "m.index.json")
    assert time.process_time() - started < 5
    assert sum(map(len, parts.values())) == 90_000
    assert parts[tmp_path / "7.safetensors"][:2] == ("w7", "w3007")


def test_random_bytes_raise_errors_of_the_family_only(tmp_path: Path) -> None:
    random_ = random.Random(0)
    good = saved_bytes({"a": torch.ones(3)})
    starts = [
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"\x80\x02",
        b"\x80\x04\x95",
        b"GIF89a",
        b"(",
        b"{",
        b"\x08\x08",
        b"",
    ]
    path = tmp_path / "m"
    for _ in range(500):
        body = random_.choice(
            [random_.randbytes(random_.randrange(200)), good[random_.randrange(len(good)) :]]
        )
        path.write_bytes(random_.choice(starts) + body)
        with path.open("rb") as file:
            try:
                read_members(file, path.stat().st_size)
            except ZipError:
                ends_as_zip(file, path.stat().st_size)
        try:
            read(path)
        except CheckpointError as error:
            assert "\n" not in error.message


def test_torchs_ways_to_write_an_archive_are_read(tmp_path: Path) -> None:
    from torch.utils.serialization import config

    before = config.save.storage_alignment
    config.save.storage_alignment = 4096
    try:
        (tmp_path / "m.pt").write_bytes(saved_bytes({"a": torch.ones(3)}))
    finally:
        config.save.storage_alignment = before
    assert list(read(tmp_path / "m.pt").tensors) == ["a"]
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))  # sizes of 64 bits, for which there is no need
    assert [member.name for member in read_members(buffer, len(buffer.getvalue()))] == ["a.npy"]


def test_a_file_that_is_too_large_for_32_bits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with torch.serialization.skip_data():  # leaves holes, so that the file takes no room
        torch.save({"a": torch.empty(1_100_000_000), "b": torch.ones(7)}, path)
    with TorchArchive(path) as archive:
        assert archive.size_of("data/0") == 4_400_000_000
        assert archive.size_of("data/1") == 28
        assert archive.read("version") == b"3\n"
