"""What stands beside the weights in a pickle: written back as it was, or named with the reason."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bcu_cli.checkpoints import Format, read, write
from bcu_cli.checkpoints.pickles.extra_entries import MAY_HOLD
from bcu_cli.checkpoints.writing import lost_in
from bcu_cli.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = {"conv.weight": torch.arange(72.0).reshape(2, 4, 3, 3), "conv.bias": torch.ones(2)}
OTHERS = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
INERT = {
    "class names by number": {0: "apple", 1: "berry"},
    "other keys": {1.5: "a", None: "b", True: "c", (1, "x"): "d"},
    "an ordered table": OrderedDict(lr=0.1, width=16),
    "tables in one another": {"a": OrderedDict({3: {"b": [{"c": (1, None)}]}})},
    "counts": Counter({"a": 3}),
    "a set": {"b", "a", 3},
    "a pair": (1, "x", (2.5, None)),
    "a complex number": 1 + 2j,
    "bytes": b"\x00\xff",
    "a shape": torch.Size([3, 4]),
    "a device": torch.device("cuda:1"),
    "a type": torch.bfloat16,
    "a mean": torch.tensor([0.5, 0.25, 0.125]),
    "a mean in half": torch.ones(3, dtype=torch.bfloat16),
    "a random state": torch.get_rng_state(),
    "a confusion matrix": torch.arange(9).reshape(3, 3),
    "tensors in a list": [torch.ones(2), {"x": torch.tensor(3)}],
    "the name of an optimizer": {"optimizer": "sgd", "ema": 0.99},
    "a large number": 2**100,
}
HELD = {
    "another copy": OTHERS,
    "a copy in a wrapper": {f"module.{name}": tensor for name, tensor in OTHERS.items()},
    "a copy in a list": [1, [OTHERS]],
    "a copy without names": list(OTHERS.values()),
    "all in one vector": torch.cat([tensor.flatten() for tensor in OTHERS.values()]),
    "a teacher": {"stem.weight": torch.ones(5, 5), "stem.bias": torch.ones(5)},
    "ema": {"decay": 0.99, "values": [torch.ones(7)]},
    "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    "optim": [{"momentum": torch.ones(72)}],
    "a weight in half": OTHERS["conv.weight"].half(),
}


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, and all types in them."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(
            type(x) is type(y) and same(a[x], b[y]) for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def rewritten(tmp_path: Path, value: Any, **how: Any) -> tuple[Any, Any]:
    """What is read of a value, and what torch reads of the file written in its place, with weights of 0."""
    torch.save(value, tmp_path / "in.pth")
    checkpoint = read(tmp_path / "in.pth", **how)
    new = {name: tensor * 0 for name, tensor in checkpoint.tensors.items()}
    write(tmp_path / "out.pth", new, like=checkpoint, format=Format.PICKLE, metadata={"bcu.arch": '"x"'})
    return checkpoint, torch.load(tmp_path / "out.pth", weights_only=True)


@pytest.mark.parametrize("name", INERT)
def test_what_is_inert_is_written_back(tmp_path: Path, name: str) -> None:
    for value in (
        {name: INERT[name], "state_dict": WEIGHTS},
        OrderedDict({"run": {"net": OrderedDict(WEIGHTS), 7: INERT[name]}, name: INERT[name]}),
        {**WEIGHTS, name: INERT[name]},  # where a tensor is a weight
    )[: 2 if isinstance(INERT[name], torch.Tensor) else 3]:
        checkpoint, written = rewritten(tmp_path, value)
        assert checkpoint.omitted == ()
        assert list(value) == [key for key in written if key != "metadata"]
        assert type(written) is type(value)
        assert same(written[name], INERT[name])
        if "run" in value:
            assert same(written["run"][7], INERT[name])
            assert type(written["run"]["net"]) is OrderedDict


@pytest.mark.parametrize("name", HELD)
def test_what_may_hold_the_backdoor_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    value = {
        "state_dict": {**WEIGHTS, "more": torch.ones(1)},
        name: HELD[name],
        "kept": {name: HELD[name], "a": 1},
    }
    checkpoint, written = rewritten(tmp_path, value)
    assert checkpoint.nesting == ("state_dict",)
    assert {each.name.removeprefix("kept/") for each in checkpoint.omitted} == {name}
    assert len(checkpoint.omitted) == 2
    assert all(MAY_HOLD in each.why for each in checkpoint.omitted)
    assert (set(written), written["kept"]) == ({"state_dict", "kept", "metadata"}, {"a": 1})


@pytest.mark.parametrize(
    "own",
    [
        {"epoch": 12, "classes": ["a", "b"], "mean": [0.5]},
        ["a list"],
        "a text",
        {0: "numbered"},
        {"of": argparse.Namespace(a=1), "epoch": 3},
    ],
)
def test_metadata_of_the_files_own_stay(tmp_path: Path, own: Any) -> None:
    _, written = rewritten(tmp_path, {"state_dict": WEIGHTS, "metadata": own})
    kept = {"epoch": 3} if isinstance(own, dict) and "of" in own else own
    assert same(written["metadata"], kept)
    assert written["bcu_metadata"] == {"bcu.arch": '"x"'}
    again, twice = rewritten(tmp_path, written)
    assert again.metadata == {"bcu.arch": '"x"'}
    assert list(twice) == list(written)


def test_objects_leave_the_rest_of_their_table(tmp_path: Path) -> None:
    value = {"state_dict": WEIGHTS, "args": {"lr": 0.1, "more": argparse.Namespace(a=1)}}
    checkpoint, written = rewritten(tmp_path, value)
    assert checkpoint.left_out == ("args/more (argparse.Namespace)",)
    assert written["args"] == {"lr": 0.1}


def test_a_set_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "tags": {f"tag {n}" for n in range(50)}}, tmp_path / "in.pth")
    program = (
        "import sys; from bcu_cli.checkpoints import *; like = read(sys.argv[1]);"
        "print(write(sys.argv[2], like.tensors, like=like, format=Format.PICKLE))"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "in.pth"), str(tmp_path / "out.pth")],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_a_table_of_shared_lists_is_not_followed_for_ever(tmp_path: Path) -> None:
    many: Any = [torch.ones(1)]
    for _ in range(60):
        many = [many, many]
    value = {"state_dict": WEIGHTS, "many": many, "optim": many, "ema": {"a": many}, "kept": 1}
    checkpoint, written = rewritten(tmp_path, value)
    assert set(checkpoint.left_out) == {"many", "optim", "ema"}
    assert written["kept"] == 1


@pytest.mark.parametrize("metric", [0.9, None])
def test_the_average_that_was_validated_is_taken(tmp_path: Path, metric: float | None) -> None:
    value = {"state_dict": WEIGHTS, "state_dict_ema": OTHERS, **({"metric": metric} if metric else {})}
    checkpoint, written = rewritten(tmp_path, value)
    taken, other = ("state_dict_ema", "state_dict") if metric else ("state_dict", "state_dict_ema")
    assert (checkpoint.nesting, checkpoint.others, checkpoint.left_out) == ((taken,), (other,), (other,))
    assert ("average, which timm validates" in checkpoint.choice) == (metric is not None)
    assert set(written) - {"metric"} == {taken, "metadata"}


def test_a_key_chooses_among_several(tmp_path: Path) -> None:
    value = {"model": WEIGHTS, "run": {"model_ema": OTHERS}}
    for key, tensors in (("model", WEIGHTS), ("run/model_ema", OTHERS)):
        checkpoint, _ = rewritten(tmp_path, value, weights_key=key)
        assert ("/".join(checkpoint.nesting), checkpoint.others) == (key, ())
        assert same(dict(checkpoint.tensors), tensors)
        assert len(checkpoint.left_out) == 1
    with pytest.raises(CheckpointError, match="no weights under 'ema'") as error:
        read(tmp_path / "in.pth", weights_key="ema")
    assert "it has model, run/model_ema" in error.value.hint
    write(tmp_path / "one.safetensors", WEIGHTS, format=Format.SAFETENSORS)
    with pytest.raises(CheckpointError, match="holds only one table of weights"):
        read(tmp_path / "one.safetensors", weights_key="model")


def test_what_another_format_has_no_place_for_is_named(tmp_path: Path) -> None:
    checkpoint, _ = rewritten(tmp_path, {"state_dict": WEIGHTS, "epoch": 3, "metadata": {"a": "b"}})
    names = {form: [each.name for each in lost_in(checkpoint, form)] for form in Format}
    assert names[Format.PICKLE] == []
    assert names[Format.SAFETENSORS] == ["epoch"]
    assert names[Format.TORCHSCRIPT] == ["epoch", "metadata"]
