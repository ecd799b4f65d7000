"""Code of hostile TorchScript files: refused in one line, within limits."""

from __future__ import annotations

import io
import pickle
import re
import time
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from scripted import evaluated, torchscript_of
from torch import Tensor, nn

from bcu_cli.checkpoints import inspect_only
from bcu_cli.errors import ArchitectureError, CheckpointError, UnsafeFileError
from bcu_cli.models.embedded.script_limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = torch.rand(2, 3, 8, 8)


class Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


GOOD = torchscript_of(Host().eval())
PLACE = "code/__torch__/test_script_hostile.py"


def with_members(members: dict[str, bytes]) -> bytes:
    """The good file with members replaced or added."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(GOOD)) as old, zipfile.ZipFile(buffer, "w") as new:
        root = old.namelist()[0].split("/")[0]
        names = {name: old.read(name) for name in old.namelist()}
        names |= {f"{root}/{name}": data for name, data in members.items()}
        for name, data in names.items():
            new.writestr(name, data)
    return buffer.getvalue()


def with_body(body: str, more: str = "") -> bytes:
    """The good file with another forward, and methods beside it."""
    with zipfile.ZipFile(io.BytesIO(GOOD)) as archive:
        name = next(name for name in archive.namelist() if name.endswith(PLACE))
        text = archive.read(name).decode()
    head = text[: text.index("  def forward")]
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    kind = "__torch__.test_script_hostile.Host"
    text = f"{head}  def forward(self: {kind},\n    x: Tensor) -> Tensor:\n{lines}{more}"
    return with_members({PLACE: text.encode()})


LOOP = "y = x\nflag = True\nwhile flag:\n  y = torch.relu(y)\nreturn y"
REFUSED = {
    "endless loop": (LOOP, "more than 5,000 operations"),
    "long range": ("for i in range(9000000000000000000):\n  y = i\nreturn x", "operations"),
    "endless recursion": ("return (self).forward(x, )", "nested more than"),
    "a list that doubles": ("a = [1]\nfor i in range(60):\n  a = torch.add(a, a)\nreturn x", "operations"),
    "a text that doubles": ('a = "aa"\nfor i in range(60):\n  a = torch.add(a, a)\nreturn x', "operations"),
    "zeros": ("return torch.zeros([4, 100000000000])", "computes a tensor of"),
    "expanded": ("return torch.expand(torch.ones([1]), [100000000000])", "computes a tensor of"),
    "repeated": ("return torch.repeat(x, [10000000, 1, 1, 1])", "computes a tensor of"),
    "broadcast": (
        "a = torch.arange(1000000)\nreturn torch.mul(a, torch.unsqueeze(a, 1))",
        "computes a tensor",
    ),
    "kept": (
        "a = annotate(List[Tensor], [])\nfor i in range(9):\n  _1 = torch.append(a, torch.ones([90000000]))",
        "at one time",
    ),
    "remainder by zero": ("a = torch.remainder(7, 0)\nreturn x", "it fails"),
    "floordiv by zero": ("a = torch.floordiv(7, 0)\nreturn x", "it fails"),
    "least by minus one": ("a = torch.floordiv(-9223372036854775808, -1)\nreturn x", "64 bits"),
    "too large": ("a = torch.mul(9223372036854775807, 2)\nreturn x", "64 bits"),
    "tensor by zero": ("a = torch.floor_divide(torch.to(x, 4), 0)\nreturn a", "it fails"),
    "confused types": ("a = unchecked_cast(Tensor, 140000000)\nreturn a", "takes a int for a Tensor"),
    "confused list": ("a = annotate(List[Tensor], [1, 2])\nreturn a[0]", "takes a list for a"),
    "uninitialised": ("a = uninitialized(Tensor)\nreturn torch.relu(a)", "never set"),
    "uninitialised cast": ("a = unchecked_cast(Tensor, uninitialized(Tensor))\nreturn a", "Uninitialized"),
    "small statistics": (
        "m = torch.zeros([1])\nreturn torch.batch_norm(x, None, None, m, m, True, 0.1, 1e-05, False)",
        "it fails",
    ),
    "weight norm": (
        "return torch._weight_norm(x, torch.ones([1]), 0)",
        "norms of another shape",
    ),
    "no such element": ("a = [1]\nb = a[5]\nreturn x", "element 5 of 1"),
    "sets a weight": ("self.fc = x\nreturn x", "sets the attribute fc"),
    "quantised": ("return torch.to(x, 12)", "names a dtype"),
    "sparse": ("return torch.zeros([2], layout=1)", "names a layout"),
    "its own error": ('ops.prim.RaiseException("no\\nno")\nreturn x', "it stops itself: no no"),
    "deep list": ("a = x\nfor i in range(500):\n  b = torch.tensor([a])\nreturn x", "makes a tensor of a"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_code_ends_in_one_line(case: str) -> None:
    body, words = REFUSED[case]
    network = evaluated(with_body(body), limits=Limits(operations=5000))
    with pytest.raises(ArchitectureError, match=words) as caught, torch.no_grad():
        network(IMAGES)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "condition", ["torch.gt(torch.size(x, 0), 4)", "self.training"], ids=["in batches", "in training"]
)
def test_what_begins_only_later_is_measured_by_the_first_pass(condition: str) -> None:
    body = f"y = x\nif {condition}:\n  for i in range(12000):\n    y = torch.relu(x)\nelse:\n  pass\nreturn y"
    network = evaluated(with_body(body)).eval()
    network(IMAGES)
    with pytest.raises(ArchitectureError, match="more than 10"):
        network.train()(torch.rand(8, 3, 8, 8))


def test_limits_can_be_chosen() -> None:
    body = "y = x\nfor i in range(50):\n  y = torch.relu(y)\nreturn y"
    assert evaluated(with_body(body))(IMAGES).shape == IMAGES.shape
    with pytest.raises(ArchitectureError, match="more than 40 operations"):
        evaluated(with_body(body), limits=Limits(operations=40))(IMAGES)


def test_an_endless_loop_can_be_interrupted() -> None:
    calls = []

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    loop = "fc = self.fc\nflag = True\nwhile flag:\n  y = (fc).forward(torch.ones([1, 3]), )\nreturn x"
    network = evaluated(with_body(loop), limits=Limits(operations=2000))
    network.fc.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        network(IMAGES)
    with pytest.raises(ArchitectureError, match="operations"):  # the account of that pass is closed
        network(IMAGES)


def test_nothing_runs_while_a_file_is_opened() -> None:
    loop = "  def __setstate__(self: __torch__.test_script_hostile.Host,\n    x: Tensor) -> NoneType:\n"
    loop += "    while True:\n      pass\n    return None\n"
    network = evaluated(with_body("return torch.mean(x, [2, 3])", loop))
    assert network(IMAGES).shape == (2, 3)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "(" * 34_000 + "1" + ")" * 34_000 + "\n",
        "".join(" " * i + "if x:\n" for i in range(370)) + " " * 370 + "pass\n",
        "x = " + "(" * 150 + "1" + ")" * 150 + "\n",
        "x = " + "-" * 300 + "1\n",
    ],
)
def test_code_that_is_nested_deeply_is_refused_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "deep.pt").write_bytes(with_members({"code/deep.py": text.encode()}))
    start = time.process_time()
    with pytest.raises(UnsafeFileError, match=r"nested too deeply|does not parse"):
        inspect_only(tmp_path / "deep.pt")
    assert time.process_time() - start < 1


def lite(*operators: str, instruction: str = "OP") -> bytes:
    """A bytecode.pkl that calls operators."""
    tables = (
        ("instructions", ((instruction, 0, 0), ("RET", 0, 0))),
        ("operators", tuple((name, "", 1) for name in operators)),
        ("constants", ()),
        ("types", ()),
        ("register_size", 1),
    )
    return pickle.dumps((8, ("__torch__.test_script_hostile.Host.forward", tables)), protocol=2)


def test_the_lite_interpreters_bytecode_is_judged_like_code(tmp_path: Path) -> None:
    path = tmp_path / "lite.pt"
    path.write_bytes(with_members({"bytecode.pkl": lite("aten::relu")}))
    assert not inspect_only(path).findings
    for data, words in [
        (lite("aten::save"), r"bytecode\.pkl that calls aten::save"),
        (lite("aten::relu", instruction="EVIL"), "<instruction EVIL>"),
        (b"\x80\x02]q\x00.", "cannot be followed"),
    ]:
        path.write_bytes(with_members({"bytecode.pkl": data}))
        found = inspect_only(path)
        assert found.is_unsafe
        assert any(re.search(words, finding.message) for finding in found.findings)


def test_a_file_whose_objects_are_no_modules_is_damaged() -> None:
    with pytest.raises(CheckpointError):
        evaluated(with_members({"data.pkl": b"\x80\x02N."}))
