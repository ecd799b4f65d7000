"""Each report lists what the command read; and the check of all tests that no input is changed can fail."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import inputs_unchanged
from safetensors.torch import load_file, save_file

from bcu_cli.images.sources import signs
from bcu_cli.report.files_read import files_read, of_data

if TYPE_CHECKING:
    from pathlib import Path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listed(report: dict[str, Any]) -> dict[str, str | None]:
    """Path -> the digest of each file."""
    return {one["path"]: one["sha256"] for one in report["files_read"] if "sha256" in one}


def folders(report: dict[str, Any]) -> dict[str, int]:
    return {one["path"]: one["files"] for one in report["files_read"] if "files" in one}


@pytest.fixture
def model(untrained: Path, tmp_path: Path) -> Path:
    """A model alone in a folder."""
    (tmp_path / "model").mkdir()
    return shutil.copy(untrained, tmp_path / "model" / "m.safetensors")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    signs.write_folder(tmp_path / "images", 5, seed=0)
    return tmp_path / "images"


def in_parts(model: Path) -> list[Path]:
    """A model as an index and two files."""
    tensors = load_file(model)
    names = sorted(tensors)
    parts = [model.with_name(f"model-{number}.safetensors") for number in (1, 2)]
    index = model.with_name("model.safetensors.index.json")
    weight_map = {name: parts[number % 2].name for number, name in enumerate(names)}
    for part in parts:
        save_file({name: tensors[name] for name in names if weight_map[name] == part.name}, part)
    index.write_text(json.dumps({"weight_map": weight_map}))
    model.unlink()
    return [index, *parts]


def test_evaluate_lists_models_triggers_and_images(bcu, model: Path, images: Path, tmp_path: Path) -> None:
    trigger = next((images / "stop").iterdir())
    other = shutil.copy(model, tmp_path / "other.safetensors")
    words = ["evaluate", model, "--against", other, "--data", images, "--trigger-image", trigger]
    words += ["--trigger-mode", "blend", "--json"]
    report = bcu(*words).json
    assert listed(report) == {str(file): sha256(file) for file in (model, other, trigger)}
    assert folders(report) == {str(images): 40}


def test_cleanse_lists_the_model_and_the_images(bcu, model: Path, images: Path, tmp_path: Path) -> None:
    words = ["--method", "clp", "--images", images, "--out", tmp_path / "out.safetensors", "--json"]
    report = bcu("cleanse", model, *words).json
    assert listed(report) == {str(model): sha256(model)}
    assert folders(report) == {str(images): 40}


def test_attack_lists_the_images(bcu, images: Path, tmp_path: Path) -> None:
    words = ["--arch", "resnet8", "--epochs", "1", "--out", tmp_path / "out.safetensors", "--json"]
    report = bcu("attack", "badnets", "--data", images, *words).json
    assert (listed(report), folders(report)) == ({}, {str(images): 40})


@pytest.mark.parametrize("command", ["inspect", "evaluate"])
def test_every_shard_is_listed(bcu, model: Path, images: Path, command: str) -> None:
    files = in_parts(model)
    more = ["--data", images, "--arch", "resnet8", "--mean", "0,0,0", "--std", "1,1,1"]
    report = bcu(command, files[0], *(more if command == "evaluate" else []), "--json").json
    assert listed(report) == {str(file): sha256(file) for file in files}


def test_inspect_lists_the_config_beside(bcu, model: Path) -> None:
    config = model.with_name("config.json")
    config.write_text('{"architecture": "resnet18", "num_classes": 8}')
    report = bcu("inspect", model, "--json").json
    assert listed(report) == {str(file): sha256(file) for file in (model, config)}


def test_a_folder_is_its_names_and_sizes(images: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return str(files_read([folder])[0]["names_and_sizes_sha256"])

    before = digest(images)
    assert digest(shutil.copytree(images, tmp_path / "copy")) == before
    (images / ".DS_Store").touch()
    assert digest(images) == before
    one = next((images / "stop").iterdir())
    one.write_bytes(one.read_bytes() + b"\0")
    assert digest(images) != before


def test_what_is_not_there_is_left_out_and_what_comes_twice_is_once(images: Path, tmp_path: Path) -> None:
    one = next((images / "stop").iterdir())
    link = tmp_path / "link.png"
    link.symlink_to(one)
    assert [each["path"] for each in files_read([tmp_path / "nothing", one, link, one])] == [str(one)]


def test_of_a_published_set_its_own_folders_count(images: Path, tmp_path: Path) -> None:
    assert of_data(f"cifar10:{tmp_path}") == [tmp_path / "cifar-10-batches-py"]
    assert of_data(str(images)) == [images]


def test_a_changed_input_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    file.write_bytes(b"before")
    with pytest.raises(AssertionError, match="changed its input"), inputs_unchanged(["inspect", file]):
        file.write_bytes(b"after")
    with pytest.raises(AssertionError, match="changed its input"), inputs_unchanged([f"--trigger={file}"]):
        file.unlink()
    file.write_bytes(b"before")
    with inputs_unchanged(["cleanse", "--out", file, f"--page={file}"]):
        file.write_bytes(b"after")


def test_the_external_data_of_onnx_is_listed(bcu, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), dtype=np.float32), "weight")
    node = onnx.helper.make_node("Conv", ["x", "weight"], ["y"])
    shape = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    answer = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, 8, 8])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [shape], [answer], [weight]))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    report = bcu("inspect", path, "--json").json
    assert listed(report) == {str(file): sha256(file) for file in (path, tmp_path / "m.data")}
