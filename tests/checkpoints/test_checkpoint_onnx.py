"""ONNX models: recognised, their weights, and what is found in them; without any library of ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hostile
import numpy as np
import pytest
import torch

from bcu_cli.checkpoints import Format, inspect_only, load_graph, read, sniff
from bcu_cli.checkpoints.onnx.schema import looks_like_onnx
from bcu_cli.errors import CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from pathlib import Path

STATE = hostile.Small().state_dict()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def rules(path: Path) -> list[str]:
    return [finding.rule for finding in inspect_only(path).findings]


def test_the_weights_are_those_of_the_module(tmp_path: Path) -> None:
    checkpoint = read(written(tmp_path / "m.onnx", hostile.onnx_of(STATE)))
    assert (checkpoint.format, checkpoint.kind, checkpoint.findings) == (Format.ONNX, "ONNX model", ())
    assert list(checkpoint.tensors) == list(STATE)
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in STATE.items())
    assert checkpoint.operators == tuple(
        f"ai.onnx::{name}" for name in ("Conv", "Flatten", "Gemm", "GlobalAveragePool")
    )


@pytest.mark.parametrize("name", [*hostile.onnx_hostile(), *hostile.onnx_broken()])
def test_what_is_hostile_or_broken_is_not_read(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "m.onnx", (hostile.onnx_hostile() | hostile.onnx_broken())[name])
    for look in (read, lambda path: load_graph(read(path))):
        if "custom" in name or name == "onnx_compiled":
            assert rules(path) == ["onnx-operator"]  # the weights can be read: only the graph is not run
            continue
        with pytest.raises(CheckpointError):
            look(path)


def test_a_graph_with_operators_of_somebodys_own_is_not_run(tmp_path: Path) -> None:
    for name in ("onnx_custom", "onnx_custom_in_a_branch", "onnx_custom_in_a_function", "onnx_compiled"):
        path = written(tmp_path / "m.onnx", hostile.onnx_hostile()[name])
        assert {"evil::Run", "com.microsoft::EPContext"} & set(inspect_only(path).operators)
        with pytest.raises(CheckpointError):  # these hold no weights
            load_graph(read(path))
    node = hostile.onnx_node("Run", ["x"], ["z"], domain="evil")
    tensors = [hostile.onnx_tensor("w", [2], hostile.field(9, bytes(8)))]
    path = written(tmp_path / "m.onnx", hostile.onnx_model(hostile.onnx_graph([node], tensors)))
    with pytest.raises(UnsafeFileError, match="evil::Run"):
        load_graph(read(path))


def test_what_runtimes_have_built_in_is_a_note(tmp_path: Path) -> None:
    node = hostile.onnx_node("FusedConv", ["x"], ["z"], domain="com.microsoft")
    path = written(tmp_path / "m.onnx", hostile.onnx_model(hostile.onnx_graph([node], [])))
    assert [(f.rule, f.severity) for f in inspect_only(path).findings] == [("onnx-operator", "note")]


def test_a_finding_beats_what_is_broken(tmp_path: Path) -> None:
    outside = hostile.onnx_outside("conv.bias", [4], location="../x")
    short = hostile.onnx_tensor("fc.bias", [4], hostile.field(9, b""))
    path = written(tmp_path / "m.onnx", hostile.onnx_of(STATE, conv_bias=outside, fc_bias=short))
    assert rules(path) == ["onnx-external-path"]


def test_weights_beside_the_model(tmp_path: Path) -> None:
    bias = STATE["fc.bias"].numpy().tobytes()
    (tmp_path / "weights").mkdir()
    held = written(tmp_path / "weights" / "w.bin", b"skip" + bias)
    outside = hostile.onnx_outside("fc.bias", [5], location="weights/w.bin", offset="4", length="20")
    path = written(tmp_path / "m.onnx", hostile.onnx_of(STATE, fc_bias=outside))
    first = read(path)
    assert torch.equal(first.tensors["fc.bias"], STATE["fc.bias"])
    assert first.size == path.stat().st_size + 24
    held.write_bytes(b"skip" + bytes(20))
    assert inspect_only(path).sha256 != first.sha256  # what the weights are is part of what the model is
    held.write_bytes(b"skip" + bias[:-1])
    with pytest.raises(CheckpointError, match="too short") as error:
        read(path)
    assert error.value.rule == "onnx-data-missing"


@pytest.mark.parametrize("target", ["/etc/hostname", "../secret"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(20))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.bin").symlink_to(target)
    outside = hostile.onnx_outside("fc.bias", [5], location="w.bin")
    path = written(tmp_path / "model" / "m.onnx", hostile.onnx_of(STATE, fc_bias=outside))
    assert rules(path) == ["onnx-external-path"]
    with pytest.raises(UnsafeFileError):
        read(path)


def test_links_into_the_folder_of_the_model_itself_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    outside = hostile.onnx_outside("fc.bias", [5], location="w.bin")
    written(blobs / "a1", hostile.onnx_of(STATE, fc_bias=outside))
    (blobs / "b2").write_bytes(STATE["fc.bias"].numpy().tobytes())
    (snapshot / "m.onnx").symlink_to("../../blobs/a1")
    (snapshot / "w.bin").symlink_to("../../blobs/b2")
    assert torch.equal(read(snapshot / "m.onnx").tensors["fc.bias"], STATE["fc.bias"])


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (1, hostile.field(4, np.float32([1, -2]).tobytes()), torch.tensor([1.0, -2.0])),
        (11, hostile.field(10, np.float64([1, -2]).tobytes()), torch.tensor([1.0, -2.0]).double()),
        # Halves are their 16 bits as a number: 1 is 0x3C00 (bfloat16: 0x3F80), -2 is 0xC000.
        (10, hostile.field(5, b"\x80\x78" + b"\x80\x80\x03"), torch.tensor([1.0, -2.0]).half()),
        (16, hostile.field(5, b"\x80\x7f" + b"\x80\x80\x03"), torch.tensor([1.0, -2.0]).bfloat16()),
        (10, hostile.field(9, np.float16([1, -2]).tobytes()), torch.tensor([1.0, -2.0]).half()),
    ],
)
def test_numbers_in_all_their_forms(tmp_path: Path, kind: int, data: bytes, expected: torch.Tensor) -> None:
    tensor = hostile.onnx_tensor("w", [2], data, kind=kind)
    checkpoint = read(written(tmp_path / "m.onnx", hostile.onnx_model(hostile.onnx_graph([], [tensor]))))
    assert checkpoint.tensors["w"].dtype == expected.dtype
    assert torch.equal(checkpoint.tensors["w"], expected)


def test_constants_and_other_names_of_weights_and_no_sizes(tmp_path: Path) -> None:
    weight = hostile.onnx_tensor("", [2, 1], hostile.field(9, np.float32([1, 2]).tobytes()))
    value = hostile.field(1, "value") + hostile.field(5, weight) + hostile.field(20, 4)
    nodes = [hostile.onnx_node("Constant", [], ["a"], value), hostile.onnx_node("Identity", ["a"], ["b"])]
    sizes = hostile.onnx_tensor("sizes", [1], hostile.field(7, b"\x01"), kind=7)
    path = written(tmp_path / "m.onnx", hostile.onnx_model(hostile.onnx_graph(nodes, [sizes])))
    tensors = read(path).tensors
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"a": [[1], [2]], "b": [[1], [2]]}


@pytest.mark.parametrize(
    "head",
    [
        b"\x08\x01\x12\x0a\x0a\x08\x12\x04serve",  # TensorFlow's saved model
        b"\x08\x01\x3a\x04\x08\x01\x10\x02",  # a number where a graph's first field should be
        b"\x08\x00\x12\x01a",
        b"\x12\x07pytorch",
        b"\x08\x08",
        b"\x08\x08\x4d\x00\x00\x00\x00",
        b"# Model card\n",
        bytes(64),
    ],
)
def test_other_files_are_not_taken_for_it(head: bytes) -> None:
    assert not looks_like_onnx(head)


@pytest.mark.parametrize("kind", ["foreign", "harmless"])
def test_files_of_other_kinds_are_not_taken_for_it(tmp_path: Path, kind: str) -> None:
    for name, data in hostile.files(tmp_path / "canary")[kind].items():
        assert looks_like_onnx(data[:65536]) == ("onnx" in name)


def test_a_model_whose_graph_is_longer_than_the_first_bytes(tmp_path: Path) -> None:
    tensor = hostile.onnx_tensor("w", [100_000], hostile.field(9, bytes(400_000)))
    for head in (b"", hostile.field(2, "somebody")):
        data = hostile.field(1, 8) + head + hostile.field(7, hostile.onnx_graph([], [tensor]))
        assert sniff(written(tmp_path / "m", data)).value == "ONNX model"
        assert list(read(tmp_path / "m").tensors) == ["w"]


def test_what_the_onnx_library_writes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    node = helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["y"])
    ports = [helper.make_tensor_value_info(name, 1, ["n", 3, 8, 8]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:], tensors))
    helper.set_model_props(model, {"author": "ü"})
    plain, beside = tmp_path / "m.onnx", tmp_path / "beside.onnx"
    onnx.save(model, plain)
    onnx.save(model, beside, save_as_external_data=True, location="beside.data", size_threshold=0)
    for path in (plain, beside):
        checkpoint = read(path)
        assert checkpoint.metadata == {"author": "ü"}
        assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in STATE.items())
    graph = load_graph(read(beside))
    assert (graph.input, graph.input_shape, graph.outputs) == ("x", (None, 3, 8, 8), ("y",))


def test_an_operator_hides_in_the_default_of_a_function(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    hidden = helper.make_graph([helper.make_node("Run", [], ["y"], domain="evil")], "h", [], [])
    inner = helper.make_node("Identity", ["x"], ["y"])
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Mine", ["x"], ["y"], [inner], opset)
    function.attribute_proto.append(helper.make_attribute("body", hidden))
    ports = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Mine", ["x"], ["y"], domain="own")], "g", ports[:1], ports[1:]
    )
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=opset), tmp_path / "m.onnx")
    assert "evil::Run" in inspect_only(tmp_path / "m.onnx").operators
    assert rules(tmp_path / "m.onnx") == ["onnx-operator"]


@pytest.mark.parametrize(
    ("how", "rule"),
    [("shared", "impossible-size"), ("long", "onnx-data-missing"), ("vast", "onnx-layout")],
)
def test_sizes_and_places_that_cannot_be(tmp_path: Path, how: str, rule: str) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / "w.data").write_bytes(bytes(400))
    location = "n" * 300 if how == "long" else "w.data"
    tensors = []
    for number in range(3):
        tensor = onnx.TensorProto(name=f"w{number}", data_type=1, dims=[100], data_location=1)
        tensor.external_data.add(key="location", value=location)
        if how == "vast":
            tensor = onnx.TensorProto(name=f"w{number}", data_type=1, dims=[0, 2**62, 2**62])
        tensors.append(tensor)
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    (tmp_path / "m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(CheckpointError) as error:
        inspect_only(tmp_path / "m.onnx")
    assert error.value.rule == rule


def test_numbers_one_by_one_have_an_end(tmp_path: Path) -> None:
    many = 2**24 + 1
    tensor = hostile.onnx_tensor("w", [many], hostile.field(7, b"\x01" * many), kind=7)
    with pytest.raises(CheckpointError, match="one by one"):
        read(written(tmp_path / "m.onnx", hostile.onnx_model(hostile.onnx_graph([], [tensor]))))
    value = hostile.field(1, "value_floats") + hostile.field(7, bytes(2**22 + 4)) + hostile.field(20, 6)
    node = hostile.onnx_node("Constant", [], ["a"], value)
    with pytest.raises(CheckpointError, match="too long"):
        read(written(tmp_path / "m.onnx", hostile.onnx_model(hostile.onnx_graph([node], []))))


@pytest.mark.parametrize("kind", ["nodes", "depth", "attributes"])
def test_files_of_very_many_or_deep_parts_are_refused(tmp_path: Path, kind: str) -> None:
    if kind == "nodes":
        graph = hostile.onnx_graph([hostile.onnx_node("Relu", ["x"], ["y"])] * 10**6, [])
    elif kind == "attributes":
        graph = hostile.onnx_graph([hostile.onnx_node("Relu", ["x"], ["y"], *[b"\x0a\x00"] * 400_000)], [])
    else:
        graph = hostile.onnx_graph([], [])
        for _ in range(200):
            inner = hostile.field(1, "body") + hostile.field(6, graph) + hostile.field(20, 5)
            graph = hostile.onnx_graph([hostile.onnx_node("If", ["x"], ["y"], inner)], [])
    with pytest.raises(CheckpointError, match=r"fields|nested too deeply"):
        inspect_only(written(tmp_path / "m.onnx", hostile.onnx_model(graph)))
