"""safetensors: strict reading, exact writing."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from checkpoint_files import save_safetensors
from safetensors.torch import load_file, save_file

from bcu_cli.checkpoints import Format, count_not_finite, read, read_header, write
from bcu_cli.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    from pathlib import Path


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [stop - start] if shape is None else shape,
        "data_offsets": [start, stop],
    }


BROKEN: dict[str, tuple[Any, bytes, str]] = {
    "not json": (b"{nope", b"", "not valid JSON"),
    "a list": (b"{[]", b"", "not valid JSON"),
    "not utf-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "deep": (b'{"a":' + b"[" * 100_000, b"", "not valid JSON"),
    "twin tensors": (b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 1)).encode(),) * 2), b"x", "names 'a' twice"),
    "twin keys inside": (
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
        "twice",
    ),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "not a table of texts"),
    "metadata as list": ({"__metadata__": []}, b"", "not a table of texts"),
    "unknown dtype": ({"a": entry(0, 1, dtype="F4")}, b"x", "unknown dtype"),
    "negative shape": ({"a": entry(0, 1, [-1])}, b"x", "not whole numbers"),
    "fractional shape": ({"a": entry(0, 1, [1.0])}, b"x", "not whole numbers"),
    "boolean shape": ({"a": entry(0, 1, [True])}, b"x", "not whole numbers"),
    "many dimensions": ({"a": entry(0, 1, [1] * 65)}, b"x", "not whole numbers"),
    "extra field": ({"a": {**entry(0, 1), "path": "/etc"}}, b"x", "not made of"),
    "no table": ({"a": 3}, b"x", "not made of"),
    "wrong size": ({"a": entry(0, 4, [2], "F32")}, b"xxxx", "not what its shape needs"),
    "reversed": ({"a": entry(4, 0, [0])}, b"xxxx", "not what its shape needs"),
    "overlap": ({"a": entry(0, 4), "b": entry(2, 6)}, b"x" * 6, "overlaps"),
    "gap": ({"a": entry(0, 2), "b": entry(3, 4)}, b"x" * 4, "gap"),
    "trailing bytes": ({"a": entry(0, 2)}, b"x" * 5, "3 bytes follow"),
    "cut short": ({"a": entry(0, 8)}, b"x" * 5, "need 8 bytes"),
    "no tensors": ({}, b"", "holds no weights"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_are_refused(tmp_path: Path, fault: str) -> None:
    header, data, words = BROKEN[fault]
    path = save_safetensors(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=words) as error:
        read(path)
    assert str(path) in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("length", [100_000_001, 2**31, 500])
def test_header_size_is_checked_before_reading(tmp_path: Path, length: int) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(40))
    with pytest.raises(CheckpointError, match="does not fit"):
        read(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.ones(4), "b": torch.zeros(2, dtype=torch.int64)}, whole)
    data = whole.read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read(path)


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        "b.weight": torch.rand(3, 2),
        "a.count": torch.tensor(7),
        "h": torch.rand(2).to(torch.bfloat16),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"arch": "resnet18"})
    checkpoint = read(path)
    assert checkpoint.format is Format.SAFETENSORS
    assert checkpoint.kind == "safetensors"
    assert checkpoint.metadata == {"arch": "resnet18"}
    assert checkpoint.size == path.stat().st_size
    assert set(checkpoint.tensors) == set(tensors)
    assert all(torch.equal(checkpoint.tensors[name], tensors[name]) for name in tensors)
    assert read_header(path).tensors["b.weight"].shape == (3, 2)


def test_written_files_are_in_order_and_readable_by_the_library(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "flag": torch.tensor([True, False, True]),
        "z": shared,
        "tied": shared,
        "turned": shared.T,
        "none": torch.empty(0, 4),
        "count": torch.tensor(3),
        "f8": torch.ones(3).to(torch.float8_e4m3fn),
    }
    path = tmp_path / "out.safetensors"
    sha = write(path, tensors, format=Format.SAFETENSORS, metadata={"b": "1", "a": "ü"})
    again = read(path)
    assert sha == again.sha256
    assert list(again.tensors) == list(tensors)
    assert again.metadata == {"a": "ü", "b": "1"}
    loaded = load_file(path)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == again.tensors[name].dtype == tensor.dtype
        assert loaded[name].shape == again.tensors[name].shape == tensor.shape
        assert torch.equal(loaded[name].float(), tensor.float())


def test_prefix_and_metadata_come_back(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    save_file({"module._orig_mod.fc.weight": torch.ones(2)}, source, metadata={"arch": "x", "note": "old"})
    checkpoint = read(source)
    assert checkpoint.prefix == "module._orig_mod."
    assert list(checkpoint.tensors) == ["fc.weight"]
    write(
        tmp_path / "out.safetensors",
        checkpoint.tensors,
        like=checkpoint,
        format=Format.SAFETENSORS,
        metadata={"note": "new"},
    )
    again = read(tmp_path / "out.safetensors")
    assert again.metadata == {"arch": "x", "note": "new"}
    assert again.prefix == checkpoint.prefix


def test_a_dtype_that_safetensors_lacks_is_an_output_error(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    with pytest.raises(OutputError, match="complex128"):
        write(path, {"a": torch.ones(1, dtype=torch.complex128)}, format=Format.SAFETENSORS, metadata={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float16", "bfloat16"]
)
def test_values_that_are_not_finite_are_counted_among_all_there_are(tmp_path: Path, dtype: str) -> None:
    wide = getattr(torch, dtype).itemsize == 2
    every = torch.arange(2**15 if wide else 2**7, dtype=torch.int16 if wide else torch.int8)
    values = torch.cat([every, ~every]).view(getattr(torch, dtype))
    save_file({"a": values, "fine": torch.ones(3)}, tmp_path / "a.safetensors")
    expected = int((~values.float().isfinite()).sum())
    assert expected > 0
    assert count_not_finite(tmp_path / "a.safetensors") == {"a": expected}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_are_not_finite_are_counted_across_chunks(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.zeros(3_000_000, dtype=dtype)
    values[:2] = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=dtype)
    values[5], values[-2], values[-1] = float("nan"), float("inf"), float("-inf")
    save_file({"a": values, "whole": torch.full((9,), -1)}, tmp_path / "a.safetensors")
    assert count_not_finite(tmp_path / "a.safetensors") == {"a": 3}


@pytest.mark.parametrize("metadata", [None, {}])
def test_no_metadata_are_none_however_they_are_written(tmp_path: Path, metadata: Any) -> None:
    header = {"__metadata__": metadata, "a": entry(0, 1)}
    assert read(save_safetensors(tmp_path / "m.safetensors", header, b"x")).metadata == {}


def test_padding_and_tensors_without_values_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    tensors = {"a": entry(0, 0, [0, 3], "F32"), "b": entry(0, 4, [], "F32"), "c": entry(4, 4, [0], "F8_E4M3")}
    for padding in (b"", b" " * 13, b"\n\n"):
        text = json.dumps(tensors).encode() + padding
        path = tmp_path / "m.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0\x80\x3f")
        ours, theirs = read(path).tensors, load_file(path)
        assert {name: (t.shape, t.dtype, t.tolist()) for name, t in ours.items()} == {
            name: (t.shape, t.dtype, t.tolist()) for name, t in theirs.items()
        }


@pytest.mark.parametrize("file_format", [Format.SAFETENSORS, Format.PICKLE])
def test_a_name_that_is_not_utf_8_is_no_damage(tmp_path: Path, file_format: Format) -> None:
    path = tmp_path / os.fsdecode(b"m\xff\xfe")
    write(path, {"a": torch.arange(3.0)}, format=file_format)
    assert torch.equal(read(path).tensors["a"], torch.arange(3.0))
