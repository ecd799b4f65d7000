"""ONNX: rebuilt where its tensors are known, run by bcu's own operators where only its graph is."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import hostile
import pytest
import torch
from torch import nn

from bcu_cli.checkpoints import read
from bcu_cli.errors import ArchitectureError
from bcu_cli.models import build, load
from bcu_cli.models.embedded.graph import GraphNetwork

if TYPE_CHECKING:
    from pathlib import Path

HALF = (0.5,)


def exported(name: str, path: Path, *, folds: bool) -> nn.Module:
    """Writes a network with BatchNorm statistics of its own; returns it."""
    pytest.importorskip("onnx")
    network = build(name, num_classes=5).eval()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    mode = torch.onnx.TrainingMode.EVAL if folds else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = torch.zeros(2, 3, 32, 32)
        torch.onnx.export(network, (images,), path, dynamo=False, training=mode, do_constant_folding=folds)
    return network


@pytest.mark.parametrize("name", ["resnet8", "resnet18_cifar_w16"])
@pytest.mark.parametrize("folds", [False, True])
def test_it_answers_as_the_network_does(tmp_path: Path, name: str, folds: bool) -> None:
    network = exported(name, tmp_path / "m.onnx", folds=folds)
    loaded = load(read(tmp_path / "m.onnx"), mean=HALF, std=HALF)
    assert loaded.architecture.name == ("onnx" if folds else name)
    assert isinstance(loaded.classifier.network, GraphNetwork) == folds
    assert loaded.classifier.num_classes == 5
    images = torch.rand(3, 3, 32, 32)  # exported for two
    with torch.no_grad():
        expected = network((images - 0.5) / 0.5)
        torch.testing.assert_close(loaded.classifier(images), expected, atol=1e-4, rtol=1e-4)


def test_a_graph_can_be_trained(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(hostile.onnx_of(hostile.Small().state_dict()))
    network = load(read(tmp_path / "m.onnx"), mean=HALF, std=HALF).classifier.network.train()
    assert [type(layer) for layer in network.layers.values()] == [nn.Conv2d, nn.Linear]
    before = [parameter.clone() for parameter in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.rand(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (hostile.onnx_node("Loop", ["x"], ["y"]), "the operator ai.onnx::Loop"),
        (hostile.onnx_node("Relu", ["z"], ["y"]), "which no node computes"),
        (hostile.onnx_node("Relu", ["x"], ["z"]), "an output that nothing gives"),
        (hostile.onnx_node("Relu", ["x"], ["y"], hostile.field(1, "evil")), "Relu with evil"),
        (hostile.onnx_node("Conv", ["x", "x"], ["y"]), "weights that are computed"),
        (hostile.onnx_node("MatMul", ["x"], ["y"]), "lacks something"),
        (hostile.onnx_node("MaxPool", ["x"], ["y"]), "lacks something"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path: Path, node: bytes, words: str) -> None:
    weight = hostile.onnx_tensor("w", [2, 2], hostile.field(9, bytes(16)))
    (tmp_path / "m.onnx").write_bytes(hostile.onnx_model(hostile.onnx_graph([node], [weight])))
    with pytest.raises(ArchitectureError, match=words):
        load(read(tmp_path / "m.onnx"), mean=HALF, std=HALF)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [  # operator, further inputs, attributes; x is 2x4x6x6
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    ("Flatten", [], {"axis": 2}),
    ("Reshape", [[0, -1]], {}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Slice", [[1], [-1], [3]], {}),
    ("Gather", [[-1, 0]], {"axis": 1}),
    ("Unsqueeze", [[0, -1]], {}),
    ("ReduceMean", [], {"axes": [2, 3], "keepdims": 0}),
    ("Softmax", [], {"axis": 1}),
    ("Clip", [0.2, 0.6], {}),
    ("HardSigmoid", [], {"alpha": 0.3}),
    ("LeakyRelu", [], {"alpha": 0.3}),
    ("Split", [[1, 3]], {"axis": 1}),
    ("Expand", [[2, 2, 4, 6, 6]], {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES)
def test_operators_are_those_of_the_reference(
    tmp_path: Path, op: str, inputs: list[Any], attributes: dict[str, Any]
) -> None:
    onnx = pytest.importorskip("onnx")
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    constants = [np.array(value, np.float32 if isinstance(value, float) else np.int64) for value in inputs]
    names = [f"c{i}" for i in range(len(constants))]
    tensors = [onnx.numpy_helper.from_array(*pair) for pair in zip(constants, names, strict=True)]
    tensors.append(onnx.numpy_helper.from_array(np.zeros((2, 2), np.float32), "weight"))
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = onnx.helper.make_node(op, ["x", *names], outputs, **attributes)
    x = onnx.helper.make_tensor_value_info("x", 1, [2, 4, 6, 6])
    y = onnx.helper.make_tensor_value_info("y", 1, None)
    opset = [onnx.helper.make_opsetid("", 17)]
    graph = onnx.helper.make_graph([node], "g", [x], [y], tensors)
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    images = np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)
    expected = ReferenceEvaluator(str(tmp_path / "m.onnx")).run(None, {"x": images})[0]
    from bcu_cli.checkpoints import load_graph

    network = GraphNetwork(load_graph(read(tmp_path / "m.onnx")), "m.onnx")
    torch.testing.assert_close(network(torch.from_numpy(images)), torch.from_numpy(np.array(expected)))
