"""Texts of a torch.export archive that torch runs: those that torch writes pass, all others are found."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import hostile
import hostile_exported
import pytest
import torch
from torch import nn

from bcu_cli.checkpoints import inspect_only
from bcu_cli.checkpoints.exported import texts
from bcu_cli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPEN_ALL = """
import pathlib, sys, torch
folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(folder))
for path in sorted(folder.glob("*.pt2")):
    try:
        program = torch.export.load(path)
        arguments, more = program.example_inputs
        program.module()(*arguments, **more)
    except Exception:
        pass
    sys.modules.pop("canary_module", None)
    if (folder / "canary").exists():
        (folder / "canary").unlink()
        print(path.stem)
"""


def rules(path: Path) -> set[str]:
    return {finding.rule for finding in inspect_only(path).findings if finding.severity == "unsafe"}


def test_texts_that_torch_runs_are_found(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "canary_module.py").write_text(f"open({str(canary)!r}, 'w')\nx = list\n")
    made = hostile_exported.files(canary)
    for name, data in made.items():
        (tmp_path / f"{name}.pt2").write_bytes(data)
        assert rules(tmp_path / f"{name}.pt2") & {"export-name", "export-spec", "export-expression"}, name
    assert not canary.exists()
    ran = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert set(ran.stdout.split()) == set(made)  # each of them is a program indeed


class Everything(nn.Module):
    """Sizes that are not fixed, buffers, odd names of modules, tables and constants among the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a-b": nn.Linear(4, 4), "7": nn.BatchNorm1d(4)})
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("kept", torch.ones(1), persistent=False)
        self.scale = torch.ones(1) * 2

    def forward(self, x: dict[str, torch.Tensor], *rest: torch.Tensor, **more: torch.Tensor) -> Any:
        self.seen.add_(1)
        y = self.parts["7"](self.parts["a-b"](x["pixel values"] + rest[0] * more["z"])) * self.scale
        with torch.no_grad():
            z = self.parts["a-b"](y) * self.kept
        return collections.OrderedDict(logits=y, parts=[z, (y.new_zeros(y.shape[0] + 1),)]), None


class Branches(nn.Module):
    """Control flow, sizes that depend on the data, and arithmetic of sizes."""

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))
        count = (x > 0).sum().item()
        torch._check(count >= 0)
        torch._check(count < 1000)
        batch, _, height, width = x.shape
        small = nn.functional.interpolate(y, size=(height * 2, width // 2)).reshape(batch, -1)
        return small[:, :16], torch.ones(count), torch.vmap(lambda row: row.sin() * 2)(x)


def arguments(network: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    size = torch.export.Dim("size", min=3, max=64)
    if isinstance(network, Branches):
        return (torch.rand(4, 3, 8, 8),), {}, {"x": {0: size, 2: torch.export.Dim.AUTO}}
    rows = {0: size}
    sizes = {"x": {"pixel values": rows}, "rest": (rows,), "more": {"z": rows}}
    ones = {"pixel values": torch.rand(4, 4)}, torch.rand(4, 4)
    return ones, {"z": torch.rand(4, 4)}, sizes


@pytest.mark.parametrize(
    ("kind", "strict", "decomposed"),
    [
        (Everything, False, False),  # torch itself fails to decompose this one
        (Everything, True, True),
        (Branches, False, True),
        (Branches, True, False),
    ],
)
def test_what_torch_writes_passes(
    tmp_path: Path, kind: type[nn.Module], strict: bool, decomposed: bool
) -> None:
    network = kind()
    args, more, sizes = arguments(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, args, more, dynamic_shapes=sizes, strict=strict)
        torch.export.save(program.run_decompositions() if decomposed else program, tmp_path / "m.pt2")
    assert rules(tmp_path / "m.pt2") == set()


def test_kernels_that_check_nothing_are_noted(tmp_path: Path) -> None:
    program = torch.export.export(nn.Sequential(nn.BatchNorm1d(4)).eval(), (torch.rand(2, 4),))
    torch.export.save(program.run_decompositions(), tmp_path / "m.pt2")
    (finding,) = inspect_only(tmp_path / "m.pt2").findings
    assert (finding.rule, finding.severity) == ("export-unchecked-operator", "note")
    assert "_native_batch_norm_legit_no_training" in finding.message


def graph(program: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = program["graph_module"]["graph"]
    return found


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda p: p["range_constraints"].update({"print(1)": {}}), "export-expression"),
        (lambda p: graph(p)["nodes"][0].update(name="a b"), "export-name"),
        (lambda p: graph(p)["nodes"][0].update(name="lambda"), "export-name"),
        (lambda p: graph(p)["nodes"][0].update(name="größe"), "export-name"),
        (lambda p: graph(p)["nodes"][0]["metadata"].update(source_fn_stack="a,torch.x()"), "export-name"),
        (lambda p: graph(p)["nodes"][0]["metadata"].update(stack_trace="a\rimport os"), "export-name"),
        (lambda p: graph(p)["nodes"][0].update(target="torch.hub.load"), "export-operator"),
        (lambda p: graph(p)["nodes"][0].update(target="torch.ops.load_library"), "export-operator"),
        (lambda p: graph(p)["nodes"][0].update(target="torch.ops.aten.add.__class__"), "export-operator"),
        (lambda p: graph(p)["nodes"][0].update(target="_operator.attrgetter"), "export-operator"),
        (lambda p: graph(p)["nodes"][0].update(target="#ns:op"), "export-operator"),
        (
            lambda p: graph(p)["nodes"][0].update(target="torch.ops.higher_order.call_torchbind"),
            "export-operator",
        ),
        (lambda p: p["graph_module"]["module_call_graph"][0].update(fqn="a'b"), "export-name"),
        (
            lambda p: p["graph_module"]["module_call_graph"][0]["signature"].update(
                forward_arg_names=["x=print()"]
            ),
            "export-name",
        ),
    ],
)
def test_texts_of_other_forms_are_found(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], rule: str
) -> None:
    (tmp_path / "m.pt2").write_bytes(hostile_exported.changed(hostile_exported.net(), change))
    assert rules(tmp_path / "m.pt2") == {rule}


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.update(more=1),
        lambda p: graph(p)["nodes"][0].update(run="x"),
        lambda p: graph(p)["nodes"][0].update(inputs="x"),
        lambda p: graph(p).update(inputs=[{"as_tensor": {"name": "x"}, "as_int": 1}]),
        lambda p: graph(p).update(inputs=[{"as_code": "x"}]),
        lambda p: graph(p)["nodes"][0].update(outputs=[{"as_int": {"a": 1}}]),
    ],
)
def test_what_is_unknown_is_not_called_safe(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (tmp_path / "m.pt2").write_bytes(hostile_exported.changed(hostile_exported.net(), change))
    with pytest.raises(CheckpointError, match="not as torch writes it") as error:
        inspect_only(tmp_path / "m.pt2")
    assert error.value.rule == "export-layout"


def test_a_key_twice_is_no_json(tmp_path: Path) -> None:
    members = hostile_exported.net()
    odd = members["models/model.json"].replace(b"{", b'{"guards_code": [], ', 1)
    (tmp_path / "m.pt2").write_bytes(hostile_exported.packed(members | {"models/model.json": odd}))
    with pytest.raises(CheckpointError, match="not valid JSON"):
        inspect_only(tmp_path / "m.pt2")


def test_sample_inputs_hold_nothing_but_samples(tmp_path: Path) -> None:
    members, name = hostile_exported.net(), "data/sample_inputs/model.pt"
    for samples, rule in [
        (b"\x80\x02}.", "export-pickle"),
        (hostile.changed(members[name], constants_pkl=b"\x80\x02)."), "archive-program"),
        (hostile.changed(members[name], data_pkl=hostile.program(hostile.text("a'b"))), "export-name"),
    ]:
        (tmp_path / "m.pt2").write_bytes(hostile_exported.packed(members | {name: samples}))
        assert rules(tmp_path / "m.pt2") == {rule}


@pytest.mark.parametrize("name", ["opaque_obj_0", "custom_obj_0", "../weights/weight_0"])
def test_constants_in_members_that_torch_unpickles(tmp_path: Path, name: str) -> None:
    def change(table: dict[str, Any]) -> None:
        table["config"]["odd"] = {"path_name": name, "is_param": False, "use_pickle": False}

    table = "data/constants/model_constants_config.json"
    (tmp_path / "m.pt2").write_bytes(hostile_exported.changed(hostile_exported.net(), change, table))
    assert rules(tmp_path / "m.pt2") == {"export-pickle"}


def spec(kind: Any, context: Any, *children: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": list(children)}


LEAF = spec(None, None)
PLACES = {"default_factory_module": "builtins", "default_factory_name": "list", "dict_context": ["a"]}


@pytest.mark.parametrize(
    ("root", "is_known"),
    [
        (LEAF, True),
        (spec("builtins.tuple", "null", LEAF, spec("builtins.list", "null")), True),
        (spec("builtins.dict", '["a b", 3]', LEAF, LEAF), True),
        (spec("collections.OrderedDict", '["a"]', LEAF), True),
        (spec("collections.defaultdict", PLACES, LEAF), True),
        (spec("collections.deque", "null", LEAF), True),
        (spec("collections.namedtuple", "mine.Answer", LEAF), True),
        (spec("transformers.modeling_outputs.ImageClassifierOutput", '["logits"]', LEAF), True),
        (spec("builtins.dict", '["a\'b"]', LEAF), False),
        (spec("builtins.dict", '["a"]', LEAF, LEAF), False),
        (spec("builtins.dict", '[{"__enum__": true, "fqn": "os:x", "name": "y"}]', LEAF), False),
        (spec("builtins.tuple", '{"__enum__": true, "fqn": "os:x", "name": "y"}', LEAF), False),
        (spec("collections.defaultdict", PLACES | {"default_factory_module": "os"}, LEAF), False),
        (spec("collections.defaultdict", PLACES | {"default_factory_name": "exec"}, LEAF), False),
        (spec("collections.deque", '{"__enum__": true}', LEAF), False),
        (spec("somebody.Else", "null", LEAF), False),
        (spec("builtins.tuple", "null", {"type": None}), False),
        (spec(None, '{"__enum__": true}'), False),
    ],
)
def test_containers_of_inputs_and_outputs(root: dict[str, Any], is_known: bool) -> None:
    fault = texts.spec_fault(json.dumps([1, root]), of_inputs=False)
    assert (fault is None) == is_known


@pytest.mark.parametrize("text", ["", "[1]", "[2, {}]", "[" * 10_000, '[1, "x"]'])
def test_descriptions_that_are_none(text: str) -> None:
    assert texts.spec_fault(text, of_inputs=True) is not None
