"""Models in several files, and folders as hubs have them."""

from __future__ import annotations

import json
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from checkpoint_files import small_net
from safetensors.torch import save_file

from bcu_cli.checkpoints import Format, inspect_only, read
from bcu_cli.errors import CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from pathlib import Path


def sharded(folder: Path, *, suffix: str = "safetensors") -> Path:
    """A model in two files with its index."""
    state = small_net().state_dict()
    names = list(state)
    weight_map = {}
    for number, part in enumerate((names[:3], names[3:])):
        file = f"model-{number}.{suffix}"
        tensors = {name: state[name] for name in part}
        save_file(tensors, folder / file) if suffix == "safetensors" else torch.save(tensors, folder / file)
        weight_map |= dict.fromkeys(part, file)
    return write_index(folder, weight_map)


def write_index(folder: Path, weight_map: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_the_parts_are_read_as_one_model(tmp_path: Path, suffix: str) -> None:
    path = sharded(tmp_path, suffix=suffix)
    checkpoint = read(path)
    state = small_net().state_dict()
    assert set(checkpoint.tensors) == set(state)
    assert all(torch.equal(checkpoint.tensors[name], state[name]) for name in state)
    assert checkpoint.format is (Format.SAFETENSORS if suffix == "safetensors" else Format.PICKLE)
    assert checkpoint.kind.endswith(" in 2 files")
    assert checkpoint.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert read(tmp_path).path == path  # the folder stands for the model in it


def test_the_hash_is_of_all_files(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    first = inspect_only(path).sha256
    state = {name: tensor + 1 for name, tensor in read(tmp_path / "model-1.safetensors").tensors.items()}
    save_file(state, tmp_path / "model-1.safetensors")
    assert first != inspect_only(path).sha256


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../x.safetensors"}, "does not lie beside it"),
        ({"a": "/etc/passwd"}, "does not lie beside it"),
        ({"a": ".."}, "does not lie beside it"),
        ({"a": "none.safetensors"}, "is not there"),
        ({"a": 3}, "no table"),
        ({}, "no table"),
        ([], "no table"),
        ({f"t{i}": f"{i}.safetensors" for i in range(10_001)}, "names 10,001 files"),
        ({"other": "model-0.safetensors"}, "model-0.safetensors differ: 'blocks.0"),
    ],
)
def test_an_index_that_makes_no_sense(tmp_path: Path, weight_map: Any, message: str) -> None:
    sharded(tmp_path)
    path = write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=message) as error:
        read(path)
    assert error.value.rule == "shards"


def test_an_index_of_indices_is_refused(tmp_path: Path) -> None:
    path = write_index(tmp_path, {"a": "model.safetensors.index.json"})
    with pytest.raises(CheckpointError, match="which is no file of weights"):
        read(path)


def test_an_unsafe_part_is_a_finding(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/canary",)

    path = sharded(tmp_path, suffix="bin")
    (tmp_path / "model-1.bin").write_bytes(pickle.dumps(Evil()))
    assert inspect_only(path).findings[0].message.startswith("model-1.bin: asks for ")
    with pytest.raises(UnsafeFileError):
        read(path)
    assert not (tmp_path / "canary").exists()


def test_a_folder_is_the_one_model_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="without a model file"):
        read(tmp_path)
    save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    assert read(tmp_path).path.name == "weights.safetensors"
    torch.save({"a.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="holds 2 model files"):
        read(tmp_path)
    save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert read(tmp_path).path.name == "model.safetensors"
