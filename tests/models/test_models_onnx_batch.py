"""ONNX graphs that were exported for one size of batch answer each image alike in a batch of any size."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from defending import OneDevice
from torch import Tensor, nn

from bcu_cli.checkpoints import Graph, Node
from bcu_cli.models.embedded.graph import GraphNetwork

pytestmark = pytest.mark.filterwarnings("ignore")  # of tracers and exporters, which are not what is tested

HEAD = {"head": torch.randn(5, 64, generator=torch.Generator().manual_seed(1))}


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def chain(*steps: tuple[str, list[str], dict[str, Any]], batch: int, **tensors: Tensor) -> GraphNetwork:
    """One operation after another on images ``[batch, 64, 4, 4]``; ``@`` stands for the last result."""
    names = itertools.count()
    last, nodes = "x", []
    for operator, inputs, attributes in steps:
        to = f"v{next(names)}"
        taken = tuple(last if name == "@" else name for name in inputs)
        nodes.append(
            Node(operator=f"ai.onnx::{operator}", inputs=taken, outputs=(to,), attributes=attributes)
        )
        last = to
    graph = Graph(
        input="x",
        input_shape=(batch, 64, 4, 4),
        outputs=(last,),
        nodes=tuple(nodes),
        tensors=tensors | HEAD,
        version=17,
    )
    return GraphNetwork(graph, "m.onnx").eval()


POOL = [("GlobalAveragePool", ["@"], {}), ("Flatten", ["@"], {}), ("Gemm", ["@", "head"], {"transB": 1})]
SCALE = torch.linspace(-1, 1, 64)


def tokens(batch: int) -> tuple[list[Any], dict[str, Tensor]]:
    """A class token that is repeated for each image and stands before the others, as in a ViT."""
    steps = [
        ("Expand", ["token", "token_sizes"], {}),
        ("Reshape", ["x", "to_tokens"], {}),
        ("Transpose", ["@"], {"perm": [0, 2, 1]}),
        ("Concat", ["v0", "@"], {"axis": 1}),
        ("Reshape", ["@", "to_heads"], {}),
        ("Transpose", ["@"], {"perm": [2, 0, 3, 1, 4]}),  # the images are in the second dimension
        ("Gather", ["@", "first"], {"axis": 0}),
        ("Softmax", ["@"], {"axis": -1}),
        ("Transpose", ["@"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["@", "from_heads"], {}),
        ("ReduceMean", ["@"], {"axes": [1], "keepdims": 0}),
        ("MatMul", ["@", "out"], {}),
    ]
    return steps, {
        "token": torch.rand(1, 1, 64),
        "token_sizes": ints(batch, 1, 64),
        "to_tokens": ints(batch, 64, 16),
        "to_heads": ints(batch, 17, 2, 4, 8),
        "first": torch.tensor(0),
        "from_heads": ints(batch, 17, 32),
        "out": torch.rand(32, 5),
    }


def windows(batch: int) -> tuple[list[Any], dict[str, Tensor]]:
    """Windows are cut out of each image, are a batch of their own for a while, and are put together again."""
    steps = [
        ("Reshape", ["x", "cut"], {}),
        ("Transpose", ["@"], {"perm": [0, 2, 4, 3, 5, 1]}),
        ("Reshape", ["@", "parts"], {}),
        ("Softmax", ["@"], {"axis": 1}),
        ("Reshape", ["@", "whole"], {}),
        ("Transpose", ["@"], {"perm": [0, 5, 1, 3, 2, 4]}),
        ("Reshape", ["@", "images"], {}),
        *POOL,
    ]
    return steps, {
        "cut": ints(batch, 64, 2, 2, 2, 2),
        "parts": ints(batch * 4, 4, 64),
        "whole": ints(batch, 2, 2, 2, 2, 64),
        "images": ints(batch, 64, 4, 4),
    }


def sequence_first(batch: int) -> tuple[list[Any], dict[str, Tensor]]:
    """The images are behind the places, and merged with them before a layer, as in torch's attention."""
    steps = [
        ("Reshape", ["x", "to_tokens"], {}),
        ("Transpose", ["@"], {"perm": [2, 0, 1]}),
        ("Reshape", ["@", "flat"], {}),
        ("MatMul", ["@", "square"], {}),
        ("Reshape", ["@", "back"], {}),
        ("Reshape", ["@", "heads"], {}),
        ("Transpose", ["@"], {"perm": [1, 0, 2]}),
        ("Softmax", ["@"], {"axis": 1}),
        ("Transpose", ["@"], {"perm": [1, 0, 2]}),
        ("Reshape", ["@", "back"], {}),
        ("ReduceMean", ["@"], {"axes": [0], "keepdims": 0}),
        ("Gemm", ["@", "head"], {"transB": 1}),
    ]
    return steps, {
        "to_tokens": ints(batch, 64, 16),
        "flat": ints(16 * batch, 64),
        "square": torch.rand(64, 64) - 0.5,
        "back": ints(16, batch, 64),
        "heads": ints(16, batch * 8, 8),
    }


def scaled(batch: int) -> tuple[list[Any], dict[str, Tensor]]:
    """Each of 64 channels has a factor of its own; its reshape is none of images, whatever their number."""
    steps = [("Reshape", ["scale", "sizes"], {}), ("Mul", ["x", "@"], {}), *POOL]
    return steps, {"scale": SCALE, "sizes": ints(1, -1, 1, 1)}


def expanded(batch: int) -> tuple[list[Any], dict[str, Tensor]]:
    """As many rows as there are images, in a constant that has nothing to do with images."""
    steps = [
        ("Reshape", ["x", "flat"], {}),
        ("Expand", ["rows", "sizes"], {}),
        ("Mul", ["v0", "@"], {}),
        ("ReduceMean", ["@"], {"axes": [2], "keepdims": 0}),
        ("Gemm", ["@", "head"], {"transB": 1}),
    ]
    return steps, {"rows": SCALE[:, None], "sizes": ints(1, 16), "flat": ints(0, 0, -1)}


def gathered(batch: int) -> tuple[list[Any], dict[str, Tensor]]:
    """The channels stand first for a while."""
    steps = [
        ("Transpose", ["x"], {"perm": [1, 0, 2, 3]}),
        ("Reshape", ["@", "sizes"], {}),
        ("ReduceMax", ["@"], {"axes": [2], "keepdims": 0}),
        ("Transpose", ["@"], {"perm": [1, 0]}),
        ("Gemm", ["@", "head"], {"transB": 1}),
    ]
    return steps, {"sizes": ints(64, batch, 16)}


def squeezed(batch: int) -> tuple[list[Any], dict[str, Tensor]]:
    """All dimensions of size 1 go, save that of an image that comes alone."""
    return [("GlobalAveragePool", ["x"], {}), ("Squeeze", ["@"], {}), POOL[-1]], {}


CASES = [tokens, windows, sequence_first, scaled, expanded, gathered]


@pytest.mark.parametrize(
    ("case", "batch"), [*itertools.product(CASES, [1, 2, 64]), (squeezed, 2), (squeezed, 64)]
)
def test_answers_are_the_same_for_any_number_of_images(case: Any, batch: int) -> None:
    torch.manual_seed(0)
    steps, tensors = case(batch)
    network = chain(*steps, batch=batch, **tensors)
    images = torch.randn(64, 64, 4, 4)
    with torch.no_grad():
        exported = torch.cat([network(part) for part in images.split(batch)])  # no size is another one
        for size in (1, 3, 16, 64):
            answers = torch.cat([network(part) for part in images.split(size)])
            torch.testing.assert_close(answers, exported, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", [*CASES, squeezed])
def test_a_trace_of_it_takes_any_number_of_images(case: Any) -> None:
    torch.manual_seed(0)
    steps, tensors = case(2)
    network = chain(*steps, batch=2, **tensors)
    images = torch.randn(3, 64, 4, 4)
    with torch.no_grad():
        traced = torch.jit.trace(network, images[:2], check_trace=False)
    with torch.no_grad():
        torch.testing.assert_close(traced(images), network(images), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(traced(images[:1]), network(images[:1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_its_sizes_stay_on_the_cpu(case: Any) -> None:
    """Nothing is read back from a device, and no operation takes tensors of two."""
    steps, tensors = case(1)
    network = chain(*steps, batch=1, **tensors).to("meta")
    with torch.no_grad(), OneDevice():
        assert network(torch.empty(3, 64, 4, 4, device="meta")).device.type == "meta"


@pytest.mark.parametrize("dynamic", [False, True])
def test_attention_as_torch_exports_it(tmp_path: Any, dynamic: bool) -> None:
    pytest.importorskip("onnx")
    from bcu_cli.checkpoints import load_graph, read

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
            self.token, self.qkv = nn.Parameter(torch.rand(1, 1, 16)), nn.Linear(16, 48)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            q, k, v = self.qkv(x).reshape(x.shape[0], 17, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
            x = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape[0], 17, 16)
            return self.head(x[:, 0])

    network = Small().eval()
    axes = {"dynamic_axes": {"x": {0: "n"}}} if dynamic else {}
    images = torch.zeros(1, 3, 16, 16)
    torch.onnx.export(network, (images,), tmp_path / "m.onnx", dynamo=False, input_names=["x"], **axes)
    graph = GraphNetwork(load_graph(read(tmp_path / "m.onnx")), "m.onnx").eval()
    images = torch.rand(16, 3, 16, 16)
    with torch.no_grad():
        for size in (1, 3, 16):
            torch.testing.assert_close(graph(images[:size]), network(images[:size]), atol=1e-5, rtol=1e-4)
        with OneDevice():
            assert graph.to("meta")(images.to("meta")).shape == (16, 5)
