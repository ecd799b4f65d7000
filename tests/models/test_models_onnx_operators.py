"""ONNX operators with hostile arguments: computed or refused in words, never the end of the process."""

from __future__ import annotations

from typing import Any

import hostile_onnx_operators as hostile_operators
import pytest
import torch

from bcu_cli.checkpoints import Graph, Node
from bcu_cli.errors import ArchitectureError
from bcu_cli.models.embedded.graph import GraphNetwork

FLOATS, ONES = torch.rand(4, 4), torch.ones(4, dtype=torch.int64)
LEAST = torch.tensor([-(2**63)])


def network_of(*nodes: Node, version: int = 17, **tensors: torch.Tensor) -> GraphNetwork:
    output = nodes[-1].outputs[0]
    graph = Graph(input="x", input_shape=(), outputs=(output,), nodes=nodes, tensors=tensors, version=version)
    return GraphNetwork(graph, "m.onnx")


def node(name: str, *inputs: str, to: str = "y", **attributes: Any) -> Node:
    return Node(operator=f"ai.onnx::{name}", inputs=inputs, outputs=(to,), attributes=attributes)


def test_no_operator_ends_its_process() -> None:
    found = hostile_operators.run(seconds=240, most_calls=1_000)
    calls = sum(sum(of.values()) for of in found.values())
    assert {name: dict(of) for name, of in found.items() if {*of} - {"computed", "refused"}} == {}
    assert set(found) == set(hostile_operators.NAMES)
    assert calls >= 5 * len(hostile_operators.NAMES)
    assert sum(of["computed"] for of in found.values()) > calls / 5  # not all of it is refused


@pytest.mark.parametrize(
    ("op", "words", "tensors"),
    [
        (node("Div", "a", "b"), "by zero", {"a": ONES, "b": torch.tensor([0])}),
        (node("Div", "a", "b"), "beyond their range", {"a": LEAST, "b": torch.tensor([-1])}),
        (node("Gather", "x", "a"), "beyond 4 values", {"a": torch.tensor([4])}),
        (node("Gather", "x", "a"), "beyond 4 values", {"a": torch.tensor([-5])}),
        (node("Gather", "x", "a"), "no whole numbers", {"a": torch.tensor([0.5])}),
        (node("ConstantOfShape", "a"), "tensor of shape", {"a": torch.tensor([2**20, 2**20])}),
        (node("ConstantOfShape", "a"), "tensor of shape", {"a": torch.tensor([-1])}),
        (node("ConstantOfShape", "a"), "tensor of shape", {"a": torch.tensor([0, 2**62])}),
        (node("Expand", "x", "a"), "tensor of shape", {"a": torch.tensor([10**9, 4, 4])}),
        (node("Add", "a", "b"), "tensor of shape", {"a": torch.rand(1, 10**5), "b": torch.rand(10**5, 1)}),
        (
            node("MatMul", "a", "b"),
            "tensor of shape",
            {"a": torch.rand(10**5, 1, 1), "b": torch.rand(1, 10**4)},
        ),
        (node("Reshape", "x", "a"), "tensor of shape", {"a": torch.tensor([-1, -1])}),
        (node("Reshape", "x", "a"), "numbers for sizes", {"a": torch.ones(10**5, dtype=torch.int64)}),
        (node("Softmax", "x", axis="evil"), "axis of evil", {}),
        (node("Softmax", "x", axis=[1]), r"axis of \[1\]", {}),
        (node("LeakyRelu", "x", alpha=torch.ones(2)), "alpha of", {}),
        (node("Add", "x"), "with 1 inputs", {}),
        (node("Add", "x", "a", "b"), "with 3 inputs", {"a": ONES, "b": ONES}),
        (node("Reshape", "x"), "list index|without one", {}),
        (node("Split", "x", split=[1, -1]), "split into", {}),
    ],
)
def test_arguments_that_make_no_sense_are_refused_in_words(
    op: Node, words: str, tensors: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ArchitectureError, match=words) as error:
        network_of(op, **tensors)(torch.rand(4, 4))
    assert "m.onnx" in error.value.message


IMAGES = torch.rand(2, 3, 8, 8)
WEIGHT = {"w": torch.rand(4, 3, 3, 3)}


@pytest.mark.parametrize(
    ("op", "words", "tensors"),
    [
        (node("Conv", "x", "w", strides=[0, 0]), "strides", WEIGHT),
        (node("Conv", "x", "w", strides=[1]), "strides", WEIGHT),
        (node("Conv", "x", "w", dilations=[2**30, 1]), "dilations", WEIGHT),
        (node("Conv", "x", "w", dilations=[4096, 4096], auto_pad="SAME_UPPER"), "a padding of", WEIGHT),
        (node("Conv", "x", "w", dilations=[8, 8]), "larger than images", WEIGHT),
        (node("Conv", "x", "w", group=0), "0 groups", WEIGHT),
        (node("Conv", "x", "w", group=2**40), "groups", WEIGHT),
        (node("Conv", "x", "w", pads=[-1, 0, 0, 0]), "a padding of", WEIGHT),
        (node("Conv", "x", "w", pads=[1024] * 4), "tensor of shape", {"w": torch.rand(64, 3, 1, 1)}),
        (node("Conv", "x", "w", auto_pad="evil"), "a padding that is evil", WEIGHT),
        (node("Conv", "x", "w"), "windows of", {"w": torch.rand(4, 3, 0, 3)}),
        (node("MaxPool", "x", kernel_shape=[0, 0]), "kernel_shape", {}),
        (node("MaxPool", "x", kernel_shape=[2**31, 1]), "kernel_shape", {}),
        (node("AveragePool", "x", kernel_shape=[3, 3], strides=["a", 1]), "strides", {}),
        (
            node("BatchNormalization", "x", *"abcd"),
            "do not fit",
            dict.fromkeys("abc", torch.ones(3)) | {"d": torch.ones(1)},
        ),
        (
            node("BatchNormalization", "x", *"abcd"),
            "should contain 3 elements",
            dict.fromkeys("abcd", torch.ones(1)),
        ),
        (
            node("BatchNormalization", "x", *"abcd", epsilon="a"),
            "epsilon of a",
            dict.fromkeys("abcd", torch.ones(3)),
        ),
    ],
)
def test_windows_and_statistics_that_make_no_sense_are_refused(
    op: Node, words: str, tensors: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ArchitectureError, match=words):
        network_of(op, **tensors)(IMAGES)


@pytest.mark.parametrize(("kept", "momentum"), [(0.75, 0.25), (1.0, None)])
def test_batch_norm_follows_the_mode_of_the_network(kept: float, momentum: float | None) -> None:
    weights = {"a": torch.rand(3), "b": torch.rand(3), "c": torch.rand(3), "d": torch.rand(3) + 0.5}
    found = network_of(node("BatchNormalization", "x", *"abcd", momentum=kept), **weights)
    wanted = torch.nn.BatchNorm2d(3, momentum=momentum)
    names = ("weight", "bias", "running_mean", "running_var")
    wanted.load_state_dict(dict(zip(names, weights.values(), strict=True)), strict=False)
    for mode in (False, True, True, False):
        torch.testing.assert_close(found.train(mode)(IMAGES), wanted.train(mode)(IMAGES))


def test_a_graph_has_an_end() -> None:
    chain = [node("Relu", "x", to="v0"), *(node("Relu", f"v{i}", to=f"v{i + 1}") for i in range(30_000))]
    with pytest.raises(ArchitectureError, match="30,001 operations"):
        network_of(*chain)
    circle = [node("Add", "x", "b", to="a"), node("Add", "x", "a", to="b")]
    with pytest.raises(ArchitectureError, match="no node computes"):
        network_of(*circle)
    big = torch.rand(1000, 1000)
    used = [node("Gemm", "x", "w", to=f"y{i}") for i in range(20)]
    with pytest.raises(ArchitectureError, match="over and over"):
        network_of(*used, w=big)
    kept = [node("Expand", "x", "s", to=f"k{i}") for i in range(6)]
    kept.append(node("Max", *(f"k{i}" for i in range(6))))
    with pytest.raises(ArchitectureError, match="are kept at once"):
        network_of(*kept, s=torch.tensor([2**21, 4, 4]))(torch.rand(4, 4))
