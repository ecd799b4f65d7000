"""TorchScript: names and tensors without running anything; only pure code is run."""

from __future__ import annotations

import enum
import warnings
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from checkpoint_files import rewritten, script, small_net, zip_of

from bcu_cli.checkpoints import (
    Format,
    forbidden_operators,
    inspect_only,
    is_pure,
    open_script,
    read,
    write_torchscript,
)
from bcu_cli.checkpoints.torchscript.operators import UnreadableCodeError, list_operators, parse
from bcu_cli.errors import CheckpointError, UnsafeFileError
from bcu_cli.models.embedded.script import ScriptNetwork

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("trace", [False, True])
def test_names_and_tensors_are_those_of_the_state_dict(tmp_path: Path, trace: bool) -> None:
    net = small_net()
    path = script(net, tmp_path / "net.pt", trace=trace)
    checkpoint = read(path)
    assert checkpoint.format is Format.TORCHSCRIPT
    assert checkpoint.kind == "TorchScript archive"
    assert checkpoint.findings == ()
    assert is_pure(checkpoint.operators)
    assert "aten::batch_norm" in checkpoint.operators
    state = net.state_dict()
    loaded = ScriptNetwork(open_script(checkpoint))
    assert list(checkpoint.tensors) == list(loaded.state_dict())
    assert set(checkpoint.tensors) == set(state)
    for name, tensor in state.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor)
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(loaded(x), net(x))


@pytest.mark.parametrize("kind", ["e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu"])
def test_weights_of_eight_bits_are_read_and_written(tmp_path: Path, kind: str) -> None:
    dtype = getattr(torch, f"float8_{kind}")
    net = torch.nn.Linear(4, 3)
    for weight in net.parameters():
        weight.data = weight.data.to(dtype)
    checkpoint = read(script(net, tmp_path / "net.pt"))
    assert checkpoint.findings == ()
    doubled = {name: (tensor.float() * 2).to(dtype) for name, tensor in checkpoint.tensors.items()}
    write_torchscript(tmp_path / "out.pt", doubled, like=checkpoint)
    again = read(tmp_path / "out.pt").tensors
    for name, weight in net.state_dict().items():
        assert checkpoint.tensors[name].dtype == again[name].dtype == dtype
        assert torch.equal(checkpoint.tensors[name].float(), weight.float())
        assert torch.equal(again[name].float(), doubled[name].float())


class Style(enum.Enum):
    NARROW = "narrow"


class Styled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.style = Style.NARROW
        self.fc = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if self.style == Style.NARROW else x


def test_enumerations_are_no_obstacle(tmp_path: Path) -> None:
    assert list(read(script(Styled(), tmp_path / "net.pt")).tensors) == ["fc.weight", "fc.bias"]


def test_written_modules_load_anywhere_and_have_the_same_bytes(tmp_path: Path) -> None:
    original = read(script(small_net(), tmp_path / "net.pt"))
    first = write_torchscript(tmp_path / "one.pt", original.tensors, like=original)
    second = write_torchscript(tmp_path / "another_name.pt", original.tensors, like=original)
    assert first == second == read(tmp_path / "one.pt").sha256
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(str(tmp_path / "one.pt"))


def test_file_operators_are_found_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(small_net())
        made.save(str(tmp_path / "net.pt"))
    with zipfile.ZipFile(tmp_path / "net.pt") as archive:
        code = archive.read("net/code/__torch__/checkpoint_files.py").decode()
    assert "    mean = self.mean\n" in code
    evil = code.replace("    mean = self.mean\n", f'    mean = self.mean\n    torch.save(mean, "{canary}")\n')
    path = rewritten(
        tmp_path / "net.pt", {"code/__torch__/checkpoint_files.py": evil.encode()}, to=tmp_path / "evil.pt"
    )
    checkpoint = read(path)
    assert forbidden_operators(checkpoint.operators) == ("aten::save",)
    assert [(item.rule, item.severity) for item in checkpoint.findings] == [
        ("torchscript-operator", "unsafe")
    ]
    assert next(iter(checkpoint.tensors)) == "mean"
    with pytest.raises(UnsafeFileError, match="aten::save"):
        open_script(checkpoint)
    assert inspect_only(path).is_unsafe
    assert not canary.exists()


def operators_of(body: str) -> tuple[str, ...]:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    text = f"class M(Module):\n  def forward(self: __torch__.M,\n    x: Tensor) -> Tensor:\n{lines}"
    text += "  def save(self: __torch__.M, x: str) -> Tensor:\n    return torch.relu(x)\n"
    return list_operators([parse(text)], lambda name: name in ("aten::save", "aten::relu"))


def test_ordinary_code_is_pure() -> None:
    found = operators_of(
        "_0 = __torch__.torch.nn.functional.relu\ny = _0(x, False, )\nz = (self).forward(y, )\n"
        "n = torch.len(torch.size(z))\n"
        'if torch.eq(n, 3):\n  ops.prim.RaiseException("AssertionError: ")\nelse:\n'
        "  pass\n"
        "return torch.add(annotate(Tensor, z), CONSTANTS.c0)"
    )
    assert found == (
        "aten::add",
        "aten::eq",
        "aten::len",
        "aten::relu",
        "aten::size",
        "prim::RaiseException",
        "prim::annotate",
    )
    assert is_pure(found)


@pytest.mark.parametrize(
    "body",
    [
        'torch.save(x, "f")',
        'ops.aten.save(x, "f")',
        'torch.ops.aten.save(x, "f")',
        'x.save("f")',
        '_0 = torch.save\n_0(x, "f")',
        '_0 = x.save\n_0("f")',
        '_0 = __torch__.f\n_0 = x.save\n_0("f")',
        '_0, _1 = (x.save, 1)\n_0("f")',
        't = torch\nt.save(x, "f")',
        'getattr(torch, "save")(x, "f")',
        'getattr(x, "save")("f")',
        '__torch__ = x\n__torch__.save("f")',
        'torch.from_file("/etc/passwd")',
        'ops.image.read_file("/etc/passwd")',
        "fork(x)",
        "print(x)",
        "with x:\n  pass",
        "f = lambda: x",
        "def g(y: Tensor) -> Tensor:\n  return y",
        "y = __torch__.torch.classes.quantized.Conv2d(x)",
        "import os",
        "(x)[0](x)",
    ],
)
def test_other_code_is_not(body: str) -> None:
    assert not is_pure(operators_of(body))


@pytest.mark.parametrize(
    "text",
    [
        "x = 1 # comment\n",
        "x = f'{y}'\n",
        'x = b"a"\n',
        'x = """a"""\n',
        "x = \\\n 1\n",
        "x = 1\r",
        "x = (\n",
        "é = 1\n",
        "x = 1\0\n",
    ],
)
def test_code_that_torch_does_not_write_is_refused(text: str) -> None:
    with pytest.raises(UnreadableCodeError):
        parse(text)


def test_unreadable_code_and_custom_classes(tmp_path: Path) -> None:
    good = script(small_net(), tmp_path / "net.pt")
    with pytest.raises(UnsafeFileError, match="not as torch writes it"):
        read(rewritten(good, {"code/evil.py": b"exec('1')  # hi\n"}, to=tmp_path / "a.pt"))
    custom = b"\x80\x02c__torch__.torch.classes.x\nC\n)\x81."
    path = rewritten(good, {"extra.pkl": custom}, to=tmp_path / "b.pt")
    with pytest.raises(UnsafeFileError, match=r"torch\.classes"):
        read(path)


def test_broken_archives_are_damaged(tmp_path: Path) -> None:
    good = script(small_net(), tmp_path / "net.pt")
    with zipfile.ZipFile(good) as archive:
        pickled = archive.read("net/data.pkl")
    assert b"K\x05t" in pickled  # the size of the last layer's storage
    for number, changes in enumerate(
        [
            {"data/0": b"123"},
            {"data/0": None},
            {"data.pkl": b"\x80\x02N."},
            {"data.pkl": b"\x80\x02c__torch__\nUnknown\n)\x81."},
            {"data.pkl": b"\x80\x02}"},
            {"data.pkl": pickled.replace(b"K\x05t", b"J\xff\xff\xff\x7ft")},
            {"byteorder": b"big"},
            {"code/__torch__/checkpoint_files.py": None},
        ]
    ):
        with pytest.raises(CheckpointError) as error:
            read(rewritten(good, changes, to=tmp_path / f"{number}.pt"))
        assert not isinstance(error.value, UnsafeFileError)
    data = good.read_bytes()
    for length in range(1, len(data), len(data) // 20):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read(tmp_path / "cut.pt")


def test_pickle_inside_a_script_archive_is_looked_at(tmp_path: Path) -> None:
    good = script(small_net(), tmp_path / "net.pt")
    path = rewritten(
        good, {"constants.pkl": b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R."}, to=tmp_path / "evil.pt"
    )
    with pytest.raises(UnsafeFileError, match=r"asks for os\.system"):
        read(path)
    with pytest.raises(CheckpointError, match="misplaced or duplicated"):
        read(zip_of(tmp_path / "two.pt", {"a/data.pkl": b"N.", "a/constants.pkl": b"N.", "b/code/x.py": b""}))


def test_frozen_modules_say_so(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.script(small_net()))
        torch.jit.save(frozen, str(tmp_path / "frozen.pt"))
    with pytest.raises(CheckpointError, match="frozen"):
        read(tmp_path / "frozen.pt")
