"""Writing: all or nothing, the same bytes each time, never over an input."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcu_cli.checkpoints import (
    Format,
    atomic_write,
    check_suffix,
    check_writable,
    read,
    sha256_of,
    write,
    writing,
)
from bcu_cli.checkpoints.suffixes import SUFFIXES
from bcu_cli.errors import CheckpointError, OutputError

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint64, torch.bool),
]
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(0, 4), max_size=4)
TABLES = st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), min_size=1, max_size=6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=TABLES,
    metadata=st.dictionaries(NAMES, NAMES, max_size=3),
    file_format=st.sampled_from(["safetensors", "pickle"]),
)
def test_round_trip(
    tmp_path: Path, table: dict[str, Any], metadata: dict[str, str], file_format: str
) -> None:
    tensors = {
        name: torch.randint(0, 2, shape).to(dtype).reshape(shape) for name, (dtype, shape) in table.items()
    }
    path = tmp_path / "model"
    sha = write(path, tensors, format=Format(file_format), metadata=metadata)
    again = read(path)
    assert again.sha256 == sha == sha256_of(path)
    assert again.metadata == metadata
    names = [name.removeprefix(again.prefix) for name in tensors]
    assert list(again.tensors) == names
    for name, tensor in tensors.items():
        loaded = again.tensors[name.removeprefix(again.prefix)]
        assert loaded.dtype == tensor.dtype
        assert loaded.shape == tensor.shape
        assert torch.equal(loaded.to(torch.complex128), tensor.to(torch.complex128))
    assert (
        write(tmp_path / "second", again.tensors, like=again, format=Format(file_format), metadata={}) == sha
    )


@pytest.mark.parametrize("file_format", [Format.SAFETENSORS, Format.PICKLE])
def test_same_tensors_same_bytes(tmp_path: Path, file_format: Format) -> None:
    base = torch.arange(1000.0)
    tensors = {"a": base[:3], "tied": base[:3], "turned": base.reshape(10, 100).T[:2]}
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    metadata = {str(index): "x" for index in range(20)}
    first = write(tmp_path / "one", tensors, format=file_format, metadata=metadata)
    second = write(
        tmp_path / "some_other_name.pt", copies, format=file_format, metadata=dict(reversed(metadata.items()))
    )
    assert (tmp_path / "one").stat().st_size < 6000  # not the thousand numbers that they are views of
    if file_format is Format.SAFETENSORS:
        assert first == second
    else:
        assert first == write(tmp_path / "three", copies, format=file_format, metadata=metadata)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")
    for error in (RuntimeError("boom"), KeyboardInterrupt()):
        with pytest.raises(type(error)), atomic_write(path) as temporary:
            temporary.write(b"half")
            raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "written"):
        pass
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as temporary:
        temporary.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "may write"), (errno.EROFS, "read-only")],
)
def test_what_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writing.os, "fsync", refuse)
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"model\.pth cannot be written") as error:
        write(path, {"a": torch.ones(2)}, format=Format.PICKLE, metadata={})
    assert os.strerror(code).lower() in error.value.message.lower()
    assert words in error.value.hint
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "none" / "x", tmp_path / "file" / "x", Path("/dev/null")):
        with pytest.raises(OutputError) as error:
            check_writable(path)
        assert error.value.hint
        with pytest.raises(OutputError), atomic_write(path):
            pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="name too long"), atomic_write(tmp_path / ("x" * 300)):
        pass
    assert Path("/dev/null").is_char_device()
    check_writable(tmp_path / "new.pth", inputs=[tmp_path / "file"])


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(OutputError, match="no permission"):
        check_writable(tmp_path / "new.pth")


def test_output_must_not_be_an_input(tmp_path: Path) -> None:
    source = tmp_path / "model.pth"
    source.write_bytes(b"x")
    (tmp_path / "soft").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    for path in (source, tmp_path / "soft", tmp_path / "hard", tmp_path / "." / "model.pth"):
        with pytest.raises(OutputError, match="is the input"):
            check_writable(path, inputs=[source])


def test_hash_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        sha256_of(tmp_path / "none")


def test_torch_reads_the_written_pickle_from_memory_too(tmp_path: Path) -> None:
    write(tmp_path / "m.pth", {"a": torch.ones(2)}, format=Format.PICKLE, metadata={"k": "v"})
    value = torch.load(io.BytesIO((tmp_path / "m.pth").read_bytes()), weights_only=True)
    assert value["metadata"] == {"k": "v"}


@pytest.mark.parametrize(
    ("name", "format_", "free"),
    [
        ("x.safetensors", Format.SAFETENSORS, True),
        ("X.SafeTensors", Format.SAFETENSORS, True),
        ("x", Format.SAFETENSORS, True),
        ("x.v2.1", Format.SAFETENSORS, True),  # a version
        ("x.pt", Format.PICKLE, True),
        ("x.tar", Format.PICKLE, True),
        ("x.pt", Format.TORCHSCRIPT, True),
        ("x.ts", Format.TORCHSCRIPT, True),
        ("x.ts", Format.PICKLE, False),
        ("x.onnx", Format.SAFETENSORS, False),
        ("x.pt2", Format.SAFETENSORS, False),
        ("x.pt2", Format.TORCHSCRIPT, False),
        ("x.pth", Format.SAFETENSORS, False),
        ("x.safetensors", Format.PICKLE, False),
        ("x.h5", Format.PICKLE, False),
        ("x.txt", Format.SAFETENSORS, False),
        ("x.json", Format.SAFETENSORS, False),
        ("x.html", Format.SAFETENSORS, False),
        ("x.tar.gz", Format.PICKLE, False),
    ],
)
def test_a_name_says_what_is_written_or_nothing(name: str, format_: Format, free: bool) -> None:
    if free:
        check_suffix(Path(name), format_)
        return
    with pytest.raises(
        OutputError, match=f"{name} ends in .*, and a {format_} file would be written"
    ) as caught:
        check_suffix(Path(name), format_, [Format.SAFETENSORS, Format.PICKLE])
    assert caught.value.hint.startswith(f"name a file that ends in {SUFFIXES[format_][0]}")
    assert f"--format {format_} " not in caught.value.hint
    other = Format.PICKLE if format_ is Format.SAFETENSORS else Format.SAFETENSORS
    assert f"--format {other} writes {SUFFIXES[other][0]}" in caught.value.hint
