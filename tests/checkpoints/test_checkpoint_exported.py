"""Archives of torch.export: weights without torch's loader, and what could run when others load them."""

from __future__ import annotations

import json
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import hostile
import pytest
import torch
from checkpoint_files import small_net

from bcu_cli.checkpoints import Format, inspect_only, read
from bcu_cli.errors import CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from pathlib import Path


EVIL = hostile.program(hostile.call("os", "system", hostile.text("true")))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What torch writes, without the top folder."""
    path = tmp_path_factory.mktemp("exported") / "m.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(small_net(), (torch.rand(1, 3, 8, 8),)), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(path: Path, members: dict[str, bytes]) -> Path:
    path.write_bytes(hostile.zipped({f"m/{name}": data for name, data in members.items()}))
    return path


def with_table(members: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """The members with other fields in the table's entry for ``fc.weight``."""
    name = next(name for name in members if name.endswith("_weights_config.json"))
    table = json.loads(members[name])
    entry = table["config"]["fc.weight"]
    for key, value in changes.items():
        (entry if key in entry else entry["tensor_meta"])[key] = value
    return members | {name: json.dumps(table).encode()}


def test_the_weights_are_those_of_the_module(tmp_path: Path, members: dict[str, bytes]) -> None:
    checkpoint = read(written(tmp_path / "m.pt2", members))
    state = small_net().state_dict()
    assert set(checkpoint.tensors) == set(state)
    for name, tensor in state.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor)
    assert (checkpoint.format, checkpoint.findings) == (Format.EXPORTED, ())
    assert {"aten::conv2d", "aten::linear", "aten::batch_norm"} <= set(checkpoint.operators)


@pytest.mark.parametrize(
    ("name", "data", "rule"),
    [
        ("data/aotinductor/model/model.so", b"\x7fELF", "archive-program"),
        ("data/aotinductor/model/wrapper.SO.1", b"int main;", "archive-program"),
        (
            "data/sample_inputs/x.pt",
            hostile.program(hostile.call("os", "system", hostile.text("true"))),
            "pickle-global",
        ),
    ],
)
def test_what_could_run_is_a_finding(
    tmp_path: Path, members: dict[str, bytes], name: str, data: bytes, rule: str
) -> None:
    path = written(tmp_path / "m.pt2", members | {name: data})
    assert [finding.rule for finding in inspect_only(path).findings] == [rule]
    with pytest.raises(UnsafeFileError):
        read(path)


def test_the_sample_inputs_are_looked_into(tmp_path: Path, members: dict[str, bytes]) -> None:
    name = next(name for name in members if name.startswith("data/sample_inputs/"))
    path = written(tmp_path / "m.pt2", members | {name: hostile.changed(members[name], data_pkl=EVIL)})
    (finding,) = inspect_only(path).findings
    assert finding.rule == "pickle-global"
    assert "system" in finding.message


def test_a_graph_that_calls_something_else_is_a_finding(tmp_path: Path, members: dict[str, bytes]) -> None:
    graph = members["models/model.json"].replace(
        b"torch.ops.aten.conv2d.default", b"torch.ops.evil.run.default"
    )
    path = written(tmp_path / "m.pt2", members | {"models/model.json": graph})
    assert {finding.rule for finding in inspect_only(path).findings} == {"export-operator"}
    assert "evil::run" in inspect_only(path).operators


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 99}, "does not know"),
        ({"sizes": [{"as_int": 2**40}]}, "cut short or damaged"),
        ({"strides": [{"as_int": 4}, {"as_int": -1}]}, "not made of whole numbers"),
        ({"storage_offset": {"as_int": 10**6}}, "reaches beyond"),
        ({"path_name": "../../etc/passwd"}, "is missing"),
        ({"sizes": "many"}, "not as torch writes it"),
        ({"sizes": [{"as_expr": "s0"}]}, "not as torch writes it"),
    ],
)
def test_a_table_that_lies_is_refused(
    tmp_path: Path, members: dict[str, bytes], changes: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "m.pt2", with_table(members, **changes))
    with pytest.raises(CheckpointError, match=message):
        read(path)


def test_what_is_missing_or_broken(tmp_path: Path, members: dict[str, bytes]) -> None:
    def fails(changed: dict[str, bytes], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            read(written(tmp_path / "m.pt2", changed))

    table = next(name for name in members if name.endswith("_weights_config.json"))
    fails({name: data for name, data in members.items() if name != table}, "holds no weights")
    fails(members | {"data/weights/other_weights_config.json": b"{}"}, "holds 2 models")
    fails(members | {table: b"{"}, "not valid JSON")
    fails(members | {table: b"[" * 100_000}, "not valid JSON")
    fails(members | {table: b"[]"}, "not as torch writes it")
    fails(members | {"models/model.json": b"{"}, "not valid JSON")
    fails(members | {"byteorder": b"big"}, "big-endian")
    fails({name: data for name, data in members.items() if name != "data/weights/weight_0"}, "is missing")


@pytest.mark.parametrize("table", ["weights", "constants"])
def test_what_torch_would_unpickle_is_a_finding(
    tmp_path: Path, members: dict[str, bytes], table: str
) -> None:
    name = next(
        name for name in members if name.startswith(f"data/{table}/") and name.endswith("_config.json")
    )
    config = json.loads(members[name])
    config["config"]["evil"] = {"path_name": "opaque_obj_0", "use_pickle": True, "tensor_meta": None}
    changed = members | {name: json.dumps(config).encode(), f"data/{table}/opaque_obj_0": EVIL}
    rules = [finding.rule for finding in inspect_only(written(tmp_path / "m.pt2", changed)).findings]
    assert rules == ["archive-program", "export-pickle"]


NOT_PLAIN = [
    "__import__('os').system('true')",
    "().__class__.__bases__",
    "print(s0)",
    "[x for x in s0]",
    "lambda: 0",
    "s0 +",
    "s0 # odd",
    "s0 if s1 else 2",
    "f'{s0}'",
    "s0.__class__",
    "(s0 := 3)",
    "(" * 5_000 + ")" * 5_000,
    "s0" * 10_000,
]


@pytest.mark.parametrize(
    ("key", "text", "is_plain"),
    [
        *((key, text, False) for key in ("expr_str", "guards_code") for text in NOT_PLAIN),
        ("expr_str", "s0 + 2*Max(1, u3)", True),
        ("expr_str", "Mul(Integer(-2), Symbol('s94', positive=True, integer=True))", True),
        ("expr_str", "Pow(Symbol('u0', integer=True), Integer(-1))", True),
        ("expr_str", "Eq(Mod(s0, 8), 0)", True),
        ("expr_str", "Symbol('s0); import os', integer=True)", False),
        ("expr_str", "S('s0')", False),
        ("expr_str", "Add('s0', 1)", False),
        ("expr_str", "9**9**9", False),
        ("expr_str", "Pow(Integer(9), Integer(999999))", False),
        ("expr_str", "Max(s0, key=1)", False),
        ("expr_str", "L['x'].size()[0]", False),
        ("expr_str", "s0\n+1", False),
        ("guards_code", "L['x'].size()[0] >= 2 and not s1 == 4", True),
        ("guards_code", "(3 % (6*L['d']['a b'].size()[2]*(L['x'].size()[3] // 2))) != 0", True),
        ("guards_code", "math.isnan(L['f'])", True),
        ("guards_code", "L['x'].tolist()[0] == 2", False),
        ("guards_code", "L['x'].size().__len__() == 2", False),
        ("guards_code", "torch.hub == 2", False),
        ("guards_code", "max(L['x'].size(), key=1)", False),
    ],
)
def test_expressions_that_torch_would_evaluate(
    tmp_path: Path, members: dict[str, bytes], key: str, text: str, is_plain: bool
) -> None:
    program = json.loads(members["models/model.json"])
    if key == "guards_code":
        program[key] = [text]
    else:
        program["graph_module"]["graph"]["sym_int_values"] = {"s0": {"as_expr": {"expr_str": text}}}
    path = written(tmp_path / "m.pt2", members | {"models/model.json": json.dumps(program).encode()})
    assert [finding.rule for finding in inspect_only(path).findings] == (
        [] if is_plain else ["export-expression"]
    )
