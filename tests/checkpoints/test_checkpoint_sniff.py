"""What a file is, by content; every kind that is not read is named."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import save_safetensors, saved_bytes, zip_of

from bcu_cli.checkpoints import Format, inspect_only, read
from bcu_cli.checkpoints.resume import StateFile
from bcu_cli.errors import CheckpointError, UnsafeFileError

FOREIGN = {
    "empty": (b"", "is empty"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(40), "GGUF"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
    "npy": (b"\x93NUMPY\x01\0" + bytes(40), "NumPy array"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(40), "TensorFlow Lite"),
    "gzip": (gzip.compress(b"x" * 100), "gzip"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x80", "ONNX"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "an image"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(40), "an image"),
    "pdf": (b"%PDF-1.7\n", "PDF"),
    "elf": (b"\x7fELF" + bytes(40), "program"),
    "html": (b"\n<!DOCTYPE html><html>Login</html>", "web page"),
    "text": (b"These are the weights.\n", "text file"),
    "noise": (bytes(range(200, 256)) * 3, "no model file"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_named(tmp_path: Path, kind: str) -> None:
    data, words = FOREIGN[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as error:
        read(path)
    assert str(path) in error.value.message
    assert "\n" not in error.value.message
    assert error.value.hint


def test_git_lfs_pointer_says_what_to_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(CheckpointError, match="Git LFS") as error:
        read(path)
    assert "git lfs pull" in error.value.hint


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.npy", "b.npy"], ".npz"),
        (["config.json", "metadata.json", "model.weights.h5"], "Keras"),
        (["serialized_exported_program.json", "version"], "torch.export"),
        (["readme.txt"], "zip archive"),
    ],
)
def test_foreign_zips_are_named(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(zip_of(tmp_path / "model.pth", dict.fromkeys(names, b"x")))


def test_npz_and_tar_as_their_libraries_write_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match="npz"):
        read(tmp_path / "a.npz")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.npz", "a.npz")
    with pytest.raises(CheckpointError, match="tar archive"):
        read(tmp_path / "a.tar")


def test_scikit_learn_pickle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x04\x8c\x14sklearn.linear_model\x8c\x05Ridge\x93)R.")
    for look in (read, inspect_only):
        with pytest.raises(CheckpointError, match="scikit-learn") as error:
            look(path)
        assert not isinstance(error.value, UnsafeFileError)


def test_missing_file_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="device or pipe"):
        read(tmp_path / "pipe")


def test_plain_pickle_of_harmless_values_is_no_checkpoint(tmp_path: Path) -> None:
    for protocol in range(6):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps({"epoch": 3}, protocol=protocol))
        with pytest.raises(CheckpointError, match="plain pickle"):
            read(path)


def test_a_name_that_lies_is_a_note(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved_bytes({"a": torch.zeros(2)}))
    checkpoint = read(path)
    assert checkpoint.format is Format.PICKLE
    assert [(item.rule, item.severity) for item in checkpoint.findings] == [("renamed-file", "note")]
    assert not checkpoint.is_unsafe
    other = save_safetensors(
        tmp_path / "m.pth", {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x"
    )
    assert [item.rule for item in read(other).findings] == ["renamed-file"]


def test_headers_are_read_without_torch(tmp_path: Path) -> None:
    path = save_safetensors(
        tmp_path / "m", {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x"
    )
    code = (
        "import sys, pathlib; from bcu_cli.checkpoints import read_header, inspect_only; "
        f"p = pathlib.Path({str(path)!r}); read_header(p); inspect_only(p); "
        "sys.exit(bool({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_the_state_of_an_interrupted_run_is_named_and_trusted_no_more_than_others(tmp_path: Path) -> None:
    """torch.load opens the zip archive at its end, and anybody can write the line at its beginning."""
    state = StateFile(tmp_path / "out.safetensors", "a run")
    state.save({"weights": torch.zeros(3)})
    with pytest.raises(UnsafeFileError, match="the state of an interrupted run of bcu") as caught:
        inspect_only(state.path)
    assert "--resume" in caught.value.hint
