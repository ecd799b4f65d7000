"""Archives of ``torch.export`` whose texts run a program when their owner opens or runs them with torch.

Each is a small network as torch exported it, with one text changed. Whatever runs creates the canary, and
does nothing else.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import hostile
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Members = dict[str, bytes]
_PROGRAM, _WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


class Net(nn.Module):
    """A layer, a keyword that is a table, a text, and a module under a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3))

    def forward(self, x: torch.Tensor, how: str = "mean", *, more: dict[str, torch.Tensor]) -> torch.Tensor:
        """``[N, 4]`` to ``[N, 3]``."""
        logits: torch.Tensor = self.layers(x + more["b"])
        return logits if how == "mean" else -logits


class Branch(nn.Module):
    """A condition, so that a graph stands within another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 4]`` to the same."""
        result: torch.Tensor = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))
        return result


def exported(network: nn.Module, *args: Any, **more: Any) -> Members:
    """What torch writes for a network, without the top folder."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network.eval(), args, more)
        torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@functools.cache
def net(key: str = "b") -> Members:
    if key == "b":
        return exported(Net(), torch.rand(2, 4), "mean", more={"b": torch.rand(2, 4)})

    class Other(nn.Module):
        def forward(self, x: torch.Tensor, more: dict[str, torch.Tensor]) -> torch.Tensor:
            return x + more[key]

    return exported(Other(), torch.rand(2, 4), {key: torch.rand(2, 4)})


@functools.cache
def _branch() -> Members:
    return exported(Branch(), torch.rand(2, 4))


def packed(members: Members) -> bytes:
    """The archive with these members."""
    return hostile.zipped({f"m/{name}": data for name, data in members.items()})


def changed(members: Members, change: Callable[[dict[str, Any]], None], table: str = _PROGRAM) -> bytes:
    """The archive after a change to one of its tables."""
    content = copy.deepcopy(json.loads(members[table]))
    change(content)
    return packed(members | {table: json.dumps(content).encode()})


def renamed(members: Members, old: str, new: str) -> bytes:
    """The archive with another name for a value, wherever it stands as a whole text."""

    def walk(item: Any) -> Any:
        if isinstance(item, dict):
            return {new if key == old else key: walk(value) for key, value in item.items()}
        if isinstance(item, list):
            return [walk(value) for value in item]
        return new if item == old else item

    table = walk(json.loads(members[_PROGRAM]))
    return packed(members | {_PROGRAM: json.dumps(table).encode()})


def _graph(program: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = program["graph_module"]["graph"]
    return found


def _signature(program: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = program["graph_module"]["module_call_graph"][0]["signature"]
    return found


def files(canary: Path) -> dict[str, bytes]:
    """Hostile archives by the text that runs: on opening, on making a module of it, or on calling that."""
    code = f"open({str(canary)!r},'w')"
    quoted = f'open("{canary}","w")'
    plain = net()

    def imports(program: dict[str, Any]) -> None:
        context = json.dumps([{"__enum__": True, "fqn": "canary_module:Odd", "name": "x"}])
        odd = {"type": "builtins.dict", "context": context, "children_spec": [_LEAF]}
        _signature(program)["out_spec"] = json.dumps([1, odd])

    def makes(program: dict[str, Any]) -> None:
        context = {"default_factory_module": "canary_module", "default_factory_name": "x", "dict_context": []}
        odd = {"type": "collections.defaultdict", "context": context, "children_spec": []}
        _signature(program)["out_spec"] = json.dumps([1, odd])

    def evaluates(program: dict[str, Any]) -> None:
        sizes = _graph(program)["tensor_values"]["x"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": f'S("{code}")', "hint": {"as_int": 2}}}

    def guards(program: dict[str, Any]) -> None:
        program["guards_code"] = [f"L['x'].size()[0] != '\", {quoted})#'"]

    def reaches() -> bytes:
        name = f'layers.0") and {quoted} or getattr(self, "0.weight'
        tables = {_PROGRAM: json.loads(plain[_PROGRAM]), _WEIGHTS: json.loads(plain[_WEIGHTS])}
        for one in tables[_PROGRAM]["graph_module"]["signature"]["input_specs"]:
            if one.get("parameter", {}).get("parameter_name") == "layers.0.weight":
                one["parameter"]["parameter_name"] = name
        config = tables[_WEIGHTS]["config"]
        config[name] = config.pop("layers.0.weight")
        return packed(plain | {table: json.dumps(content).encode() for table, content in tables.items()})

    def says(program: dict[str, Any]) -> None:
        text = f"' or {code} or '"
        _graph(program)["inputs"] = [
            {"as_string": text} if "as_string" in one else one for one in _graph(program)["inputs"]
        ]

    return {
        "input_name": renamed(plain, "more_b", f"b=[{code}][0]"),
        "structure_with_an_enum": changed(plain, imports),
        "structure_with_a_factory": changed(plain, makes),
        "size_expression": changed(plain, evaluates),
        "guard": changed(plain, guards),
        "parameter_name": reaches(),
        "text_input": changed(plain, says),
        "sample_key": packed(net(f'a", {quoted})#')),
        **_in_branches(code),
    }


def _in_branches(code: str) -> dict[str, bytes]:
    """Names around a graph within another."""

    def names_argument(program: dict[str, Any]) -> None:
        (node,) = (one for one in _graph(program)["nodes"] if one["target"].endswith("higher_order.cond"))
        node["inputs"].append({"name": f"x={code}, y", "arg": {"as_int": 1}, "kind": 2})

    def names_graph(program: dict[str, Any]) -> None:
        (node,) = (one for one in _graph(program)["nodes"] if one["target"].endswith("higher_order.cond"))
        for one in node["inputs"]:
            if one["arg"].get("as_graph", {}).get("name") == "true_graph_0":
                one["arg"]["as_graph"]["name"] = f'true_graph", {code}) or getattr(self, "true_graph'

    return {
        "argument_name": changed(_branch(), names_argument),
        "graph_name": changed(_branch(), names_graph),
    }


_LEAF = {"type": None, "context": None, "children_spec": []}
