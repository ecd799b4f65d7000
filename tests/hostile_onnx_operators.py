"""Every operator that bcu computes of ONNX graphs, called with hostile arguments in child processes.

A call that ends its process by a signal, takes more than 1 GB or 10 s, or raises anything but the clean
refusal, is a failure. examples/benchmarks/operators_onnx.py makes a table of a long run.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch

from bcu_cli.checkpoints import Graph, Node
from bcu_cli.errors import ArchitectureError
from bcu_cli.models.embedded.graph import GraphNetwork
from bcu_cli.models.embedded.graph_layers import LAYERS
from bcu_cli.models.embedded.graph_operators import OPERATORS

NAMES = sorted({*OPERATORS, *LAYERS})
"""All operators that are computed."""
_MOST_SECONDS, _MOST_BYTES = 10, 2**30
_NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    7,
    16,
    33,
    255,
    -1,
    -2,
    -3,
    -9,
    1025,
    2**20,
    2**31,
    -(2**31),
    2**62,
    -(2**63),
    2**63 - 1,
]
_FRACTIONS = [0.0, 1.0, -1.0, 0.5, 1e-5, 1e30, -1e30, float("nan"), float("inf"), -float("inf")]
_DTYPES = [torch.float32, torch.int64, torch.int32, torch.bool, torch.uint8, torch.int8, torch.float64]
_SHAPES: list[list[int]] = [
    *([], [0], [1], [2], [4], [8], [2, 2], [4, 3], [0, 4], [1, 4], [3, 4, 5], [4, 3, 3, 3], [4, 4, 1, 1]),
    *([2, 3, 8, 8], [1, 4, 6, 6], [8, 1, 3, 3], [2, 2, 1, 1], [1, 0, 8, 8], [2, 3, 4, 5, 6], [1] * 9),
    *(
        [3000, 1],
        [1, 3000],
        [70_000],
        [70_000, 1],
        [1, 70_000],
        [1, 1, 3000, 3000],
        [4, 4, 500, 500],
        [1024, 1024],
    ),
]
_WINDOWS = [[1, 1], [3, 3], [3, 3], [1, 7], [0, 3], [64, 64], [500, 500]]
_PAIRS = {"kernel_shape", "strides", "dilations"}
_OF_ONE = "Abs Neg Exp Log Sqrt Reciprocal Erf Relu Sigmoid Tanh Softplus Mish HardSwish Identity"
_OF_TWO = "Add Sub Mul Div Pow PRelu Equal Gather Expand Reshape Max Min"
_TAKES = {1: _OF_ONE.split(), 2: _OF_TWO.split(), 3: ["Where", "Clip"]}
_IMAGES: list[list[int]] = [
    [2, 3, 8, 8],
    [1, 4, 6, 6],
    [1, 1, 1, 1],
    [2, 3, 64, 64],
    [3, 4],
    [4],
    [],
    [0, 3, 8, 8],
    [2, 4, 0, 6],
]


def _tensor(draw: random.Random) -> torch.Tensor:
    shape, dtype = draw.choice(_SHAPES), draw.choice(_DTYPES)
    count = draw.randrange(6)
    if count < 2 and len(shape) < 3:
        values = [draw.choice(_NUMBERS) for _ in range(draw.randrange(6))]
        return torch.tensor(values, dtype=torch.int64)
    if count == 2:
        return torch.tensor([draw.choice(_FRACTIONS) for _ in range(4)])
    made = torch.full(shape, 1.0).to(dtype)
    if made.numel() and draw.random() < 0.5:
        made.view(-1)[0] = draw.choice([0, 1, 2, 5]) if dtype != torch.int64 else draw.choice(_NUMBERS)
    return made


def _attribute(name: str, draw: random.Random) -> Any:
    """A value for an attribute: mostly of the kind that it should be."""
    small = [0, 1, 1, 1, 2, 2, 3, -1]
    if draw.random() < 0.8:
        odd = draw.random() < 0.3
        if name in _PAIRS:
            return [draw.choice(_NUMBERS if odd else [1, 1, 2, 3, 4096]) for _ in range(2)]
        if name in {"pads", "perm", "axes", "split", "starts", "ends"}:
            return [draw.choice(_NUMBERS if odd else small) for _ in range(4 if name == "pads" else 2)]
        if name in {"alpha", "beta", "epsilon", "momentum", "min", "max"}:
            return draw.choice(_FRACTIONS)
        if name == "to":
            return draw.choice([1, 6, 7, 9, 10, 11])
        if name not in {"auto_pad", "approximate", "value"}:
            return draw.choice(_NUMBERS if odd else small)
    return draw.choice(
        [
            draw.choice(_NUMBERS),
            draw.choice(small),
            draw.choice(_FRACTIONS),
            [draw.choice(_NUMBERS) for _ in range(draw.randrange(5))],
            [draw.choice(small) for _ in range(2)],
            [draw.choice(small) for _ in range(4)],
            [draw.choice([1, 2, 4095, 4096, 1024]) for _ in range(draw.choice([2, 4]))],
            [draw.choice(_FRACTIONS) for _ in range(2)],
            draw.choice(["SAME_UPPER", "SAME_LOWER", "VALID", "tanh", "evil", ""]),
            _tensor(draw),
            [0] * 1_000,
        ]
    )


def _together(draw: random.Random) -> list[torch.Tensor]:
    """Two tensors that are harmless alone: a quotient out of range, a vast result, places beyond the end."""
    dtype = draw.choice([torch.int64, torch.int32, torch.int8])
    least = torch.full([draw.choice([1, 40])], torch.iinfo(dtype).min, dtype=dtype)
    long = torch.rand(draw.choice([30_000, 70_000]), 1)
    return draw.choice(
        [
            [least, torch.tensor([-1], dtype=dtype)],
            [least, torch.tensor([0], dtype=dtype)],
            [long, long.T.clone()],
            [long[None], long.T[None].clone()],
            [torch.rand(4, 4), torch.tensor([draw.choice(_NUMBERS)])],
            [torch.rand(1, 1), torch.tensor([2**16, 2**16])],
        ]
    )


def _fitting(sizes: list[int], draw: random.Random) -> torch.Tensor:
    """A tensor that can be broadcast with one of these sizes, of any type."""
    kept = sizes[draw.randrange(len(sizes) + 1) :]
    made = torch.full([draw.choice([1, size]) for size in kept], draw.choice([0, 1, 2, 3]))
    return made.to(draw.choice(_DTYPES[:4]))


def _constants(name: str, sizes: list[int], takes_images: bool, draw: random.Random) -> list[torch.Tensor]:
    """The constants of an operator: mostly as many as it takes, and often of shapes that fit the images."""
    inner = sizes[1] if len(sizes) > 1 and draw.random() < 0.8 else draw.choice([1, 2, 3, 8])
    last = sizes[-1] if sizes and draw.random() < 0.8 else inner
    outer = draw.choice([1, 2, 3, 4, 8])
    fitting = {
        "Conv": [[outer, inner, *draw.choice(_WINDOWS)], [outer]],
        "Gemm": [[last, outer], [outer]],
        "MatMul": [[last, outer]],
        "BatchNormalization": [[inner], [inner], [inner], [draw.choice([inner, inner, 1])]],
        "LayerNormalization": [[last], [draw.choice([last, last, 1])]],
        "MaxPool": [],
        "AveragePool": [],
    }
    if name in fitting and draw.random() < 0.8:
        return [torch.rand(shape) for shape in fitting[name]]
    number = next((number for number, names in _TAKES.items() if name in names), draw.randrange(5))
    made = [
        _fitting(sizes, draw) if draw.random() < 0.6 else _tensor(draw)
        for _ in range(max(0, number - takes_images))
    ]
    if name == "Slice" and draw.random() < 0.7:
        return [
            torch.tensor([draw.choice(_NUMBERS) for _ in range(2)]) for _ in range(draw.choice([2, 3, 4]))
        ]
    return made


def case(name: str, seed: int) -> tuple[Graph, torch.Tensor]:
    """One hostile use of an operator: a graph of nothing else, and images for it."""
    draw = random.Random(f"{name} {seed}")
    known = sorted(OPERATORS[name].attributes if name in OPERATORS else LAYERS[name])
    chosen = [one for one in known if draw.random() < 0.3]
    if name in {"MaxPool", "AveragePool"} and draw.random() < 0.8:
        chosen = sorted({*chosen, "kernel_shape"})
    sizes, takes_images, are_pair = draw.choice(_IMAGES), draw.random() < 0.8, draw.random() < 0.2
    takes_images = takes_images and not are_pair
    constants = _together(draw) if are_pair else _constants(name, sizes, takes_images, draw)
    tensors = {f"c{i}": tensor for i, tensor in enumerate(constants)}
    inputs = [*(["x"] if takes_images else []), *tensors]
    if draw.random() < 0.1:
        draw.shuffle(inputs)
    node = Node(
        operator=f"ai.onnx::{name}",
        inputs=tuple(inputs),
        outputs=tuple(f"y{i}" for i in range(draw.choice([1, 1, 1, 2, 3]))),
        attributes={one: _attribute(one, draw) for one in chosen},
    )
    version = draw.choice([7, 9, 10, 11, 13, 17, 21])
    graph = Graph(input="x", input_shape=(), outputs=("y0",), nodes=(node,), tensors=tensors, version=version)
    images = torch.rand(sizes, generator=torch.Generator().manual_seed(seed))
    return graph, images


def _outcome(name: str, seed: int) -> str:
    graph, images = case(name, seed)
    try:
        network = GraphNetwork(graph, "x.onnx")
        with torch.no_grad():
            network(images)
    except ArchitectureError:
        return "refused"
    except Exception as error:
        wants_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        return "memory" if wants_memory else f"raised {type(error).__name__}"
    return "computed"


def _child(first: int) -> None:
    """Call all operators in turn from one call on; say each before and its outcome after."""
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + _MOST_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    call = first
    while True:
        sys.stdout.write(f"{call}\n")
        sys.stdout.flush()
        signal.alarm(_MOST_SECONDS)
        outcome = _outcome(NAMES[call % len(NAMES)], call // len(NAMES))
        signal.alarm(0)
        sys.stdout.write(f"{outcome}\n")
        call += 1


def run(seconds: float, most_calls: int) -> dict[str, Counter[str]]:
    """Outcomes by operator of as many calls as fit into so many seconds.

    A process that a call ends is started again behind that call.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    end, call = time.monotonic() + seconds, 0
    while call < most_calls and time.monotonic() < end:
        command = [sys.executable, __file__, str(call)]
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, [*sys.path])), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | paths
        ) as child:
            assert child.stdout
            while call < most_calls and time.monotonic() < end:
                said, outcome = child.stdout.readline(), child.stdout.readline().strip()
                if not said:
                    raise RuntimeError("the child did not start")
                name, call = NAMES[int(said) % len(NAMES)], int(said) + 1
                found[name][outcome or f"ended {child.wait()}"] += 1
                if not outcome:
                    break
            child.kill()
    return found


if __name__ == "__main__":
    _child(int(sys.argv[1]))
