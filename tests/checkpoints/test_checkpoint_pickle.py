"""Pickles: nothing of theirs runs, and weights are found wherever they are."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from checkpoint_files import Evil, evil_pickle, rewritten, saved_bytes, small_net, zip_of

from bcu_cli.checkpoints import Format, inspect_only, read, write
from bcu_cli.errors import CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from pathlib import Path


def save(path: Path, value: Any, **options: Any) -> Path:
    path.write_bytes(saved_bytes(value, **options))
    return path


def zip_with(path: Path, data: bytes) -> Path:
    return zip_of(path, {"archive/data.pkl": data, "archive/version": b"3\n"})


HOSTILE = {
    "GLOBAL": b"\x80\x02cos\nsystem\nX\x04\0\0\0trueR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "STACK_GLOBAL by memo": b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93\x8c\x04true\x85R.",
    "STACK_GLOBAL behind POP": b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x04json0\x93\x8c\x04true\x85R.",
    "STACK_GLOBAL behind MARK": b"\x80\x04\x8c\x02os\x8c\x06system(K\x01K\x021\x93\x8c\x04true\x85R.",
    "STACK_GLOBAL by DUP": b"\x80\x04\x8c\x02os2\x93.",
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nX\x04\0\0\0trueo.",
    "python 2 name": b"\x80\x02c__builtin__\neval\nX\x01\0\0\x001\x85R.",
}
NAMED = dict.fromkeys(HOSTILE, "builtins.eval|os") | {"python 2 name": "__builtin__.eval"}


@pytest.mark.parametrize("trick", HOSTILE)
def test_every_way_to_ask_for_a_global_is_seen(tmp_path: Path, trick: str) -> None:
    path = zip_with(tmp_path / "evil.pt", HOSTILE[trick])
    with pytest.raises(UnsafeFileError, match=NAMED[trick]) as error:
        read(path)
    assert "not opened" in error.value.message
    assert error.value.hint
    description = inspect_only(path)
    assert description.is_unsafe
    assert [finding.rule for finding in description.findings] == ["pickle-global"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8c\x02os\x8c\x03sys\x8c\x03tem\x86\x93.",  # a name that is a tuple
        b"\x80\x04N\x8c\x06system\x93.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"P7\n.",
        b"\x80\x04\x8c\x02os\x94\x8c\x0bcollections\x8c\x0bOrderedDict\x93)Rh\x00\x93.",
    ],
)
def test_hidden_globals_are_unsafe(tmp_path: Path, data: bytes) -> None:
    path = zip_with(tmp_path / "evil.pt", data)
    assert [finding.rule for finding in inspect_only(path).findings] == ["pickle-hidden-global"]
    with pytest.raises(UnsafeFileError, match="hides what it asks for"):
        read(path)


@pytest.mark.parametrize("form", ["plain", "zip"])
def test_what_stands_before_the_damage_is_still_found(tmp_path: Path, form: str) -> None:
    path = tmp_path / "evil.pt"
    data = HOSTILE["GLOBAL"][:-1] + b"\xff\xff"  # unpickling it would run the program and then fail
    zip_with(path, data) if form == "zip" else path.write_bytes(data)
    assert [item.rule for item in inspect_only(path).findings] == ["pickle-global", "pickle-broken"]
    with pytest.raises(UnsafeFileError, match=r"os\.system"):
        read(path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", ["plain", "zip", "legacy", "renamed"])
def test_nothing_is_executed(tmp_path: Path, form: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / ("model.safetensors" if form == "renamed" else "model.pth")
    if form == "zip":
        zip_with(path, evil_pickle(canary, protocol))
    elif form == "legacy":
        value = {"weights": torch.zeros(2), "x": Evil(canary)}
        save(path, value, _use_new_zipfile_serialization=False, pickle_protocol=max(protocol, 2))
    else:
        path.write_bytes(evil_pickle(canary, protocol))
    with pytest.raises(UnsafeFileError, match=r"asks for (posix|os|nt)\.system when opened"):
        read(path)
    assert inspect_only(path).findings[0].offset is not None
    assert not canary.exists()


def test_a_second_pickle_behind_the_first_is_unsafe(tmp_path: Path) -> None:
    path = zip_with(tmp_path / "evil.pt", pickle.dumps({}) + evil_pickle(tmp_path / "canary"))
    assert [finding.rule for finding in inspect_only(path).findings] == ["pickle-trailing"]
    with pytest.raises(UnsafeFileError, match="after the end"):
        read(path)


def test_plain_pickles_are_looked_at_to_their_end(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({}) + evil_pickle(tmp_path / "canary"))
    assert inspect_only(path).is_unsafe


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("legacy", [False, True])
def test_whole_models_are_refused_with_the_way_to_save_them(tmp_path: Path, legacy: bool) -> None:
    path = save(tmp_path / "model.pth", small_net(), _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeFileError, match="whole pickled object, not weights") as error:
        read(path)
    assert "checkpoint_files.SmallNet" in error.value.message
    assert "model.state_dict()" in error.value.hint


@pytest.mark.parametrize(
    ("extra", "name"),
    [(argparse.Namespace(lr=0.1), "argparse.Namespace"), (np.float64(0.5), "numpy")],
)
def test_harmless_objects_are_named_not_accused(tmp_path: Path, extra: Any, name: str) -> None:
    path = save(tmp_path / "model.pth", {"state_dict": {"a": torch.ones(2)}, "extra": extra})
    (note,) = inspect_only(path).findings
    assert (note.rule, note.severity) == ("pickle-object", "note")
    assert name in note.message
    (left_out,) = read(path).left_out
    assert left_out.startswith(f"extra ({name}")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x02}", "cannot be followed"),
        (b"\x80\x02R.", "takes more from its stack"),
        (b"\x80\x02h\x07.", "memo"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo"),
        (b"\x80\x02Nu.", "without a mark"),
        (b"\xffnonsense", "cannot be followed"),
        (b"\x80\x02N.", "no weights"),
        (b"\x80\x02(X\x07\0\0\0storageNNNNtQ.", "damaged"),
        (b"\x80\x02Na.", "takes more from its stack"),
    ],
)
def test_broken_pickles_are_damaged(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as error:
        read(zip_with(tmp_path / "bad.pt", data))
    assert not isinstance(error.value, UnsafeFileError)


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files_are_damaged(tmp_path: Path, legacy: bool) -> None:
    data = saved_bytes({"a": torch.ones(50)}, _use_new_zipfile_serialization=not legacy)
    path = tmp_path / "cut.pth"
    for length in range(1, len(data), 23):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read(path)
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        read(path)


def test_flipped_bits_never_escape_as_other_errors(tmp_path: Path) -> None:
    good = saved_bytes({"state_dict": {"a": torch.ones(3)}}, _use_new_zipfile_serialization=False)
    path = tmp_path / "flipped.pth"
    refused = 0
    for position in range(0, len(good), 3):
        data = bytearray(good)
        data[position] ^= 0x41
        path.write_bytes(data)
        try:
            read(path)
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_zip_tricks_are_refused(tmp_path: Path) -> None:
    good = save(tmp_path / "good.pth", {"a": torch.ones(300)})
    bad = tmp_path / "bad.pth"
    cases: list[tuple[dict[str, bytes | None], str]] = [
        ({"../../etc/passwd": b"x"}, "points out of the archive"),
        ({"data/0": None}, "damaged"),
        ({"data/0": b"short"}, "damaged"),
    ]
    for changes, words in cases:
        with pytest.raises(CheckpointError, match=words):
            read(rewritten(good, changes, to=bad))
    data = pickle.dumps({})
    with pytest.raises(CheckpointError, match=r"2 members data\.pkl"):
        read(zip_of(bad, {"a/data.pkl": data, "b/data.pkl": data}))
    with pytest.raises(CheckpointError, match="misplaced or duplicated"):
        read(zip_of(bad, {"a/data.pkl": data, "b/other": data}))
    with pytest.raises(CheckpointError, match="is compressed"):
        read(zip_of(bad, {"a/data.pkl": data, "a/data/0": bytes(10**6)}, zipfile.ZIP_DEFLATED))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/x", b"1")
        archive.writestr("a/x", b"2")
    with pytest.raises(CheckpointError, match="misplaced or duplicated"):
        read(bad)


def test_claimed_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    for legacy in (False, True):
        data = saved_bytes({"a": torch.ones(77)}, _use_new_zipfile_serialization=not legacy)
        huge = tmp_path / "huge.pth"
        if legacy:
            huge.write_bytes(data.replace(b"K\x4d", b"J\xff\xff\xff\x7f"))
        else:
            (tmp_path / "good.pth").write_bytes(data)
            with zipfile.ZipFile(tmp_path / "good.pth") as archive:
                stream = archive.read("archive/data.pkl").replace(b"K\x4d", b"J\xff\xff\xff\x7f")
            rewritten(tmp_path / "good.pth", {"data.pkl": stream}, to=huge)
        with pytest.raises(CheckpointError, match="claim 8,589,934,588 bytes"):
            read(huge)
    bomb = save(tmp_path / "bomb.pth", {"a": torch.ones(1).expand(10**12)})
    with pytest.raises(CheckpointError, match="larger than the file"):
        read(bomb)


def test_legacy_and_parameters(tmp_path: Path) -> None:
    value = OrderedDict(a=torch.nn.Parameter(torch.ones(3)), b=torch.arange(4))
    checkpoint = read(save(tmp_path / "old.pth", value, _use_new_zipfile_serialization=False))
    assert checkpoint.kind == "legacy pickle of torch.save"
    assert list(checkpoint.tensors) == ["a", "b"]
    assert not checkpoint.tensors["a"].requires_grad
    assert type(checkpoint.tensors["a"]) is torch.Tensor


def test_a_bare_state_dict_stays_one(tmp_path: Path) -> None:
    net = small_net()
    source = save(tmp_path / "in.pth", net.state_dict())
    checkpoint = read(source)
    assert checkpoint.kind == "zip pickle of torch.save"
    assert (checkpoint.nesting, checkpoint.prefix, checkpoint.findings) == ((), "", ())
    assert list(checkpoint.tensors) == list(net.state_dict())
    sha = write(
        tmp_path / "out.pth",
        checkpoint.tensors,
        like=checkpoint,
        format=Format.PICKLE,
        metadata={"tool": "bcu"},
    )
    assert sha == read(tmp_path / "out.pth").sha256
    net.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))


def test_nested_weights_and_what_stands_beside_them(tmp_path: Path) -> None:
    weights = {f"module.layer{index}.weight": torch.full((2,), float(index)) for index in range(4)}
    moments = {index: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)} for index in range(9)}
    value = {
        "epoch": 7,
        "classes": ["stop", "go"],
        "args": {"lr": 0.1, "betas": (0.9, 0.99)},
        "model": {"state_dict": weights, "arch": "resnet18"},
        "model_ema": {"state_dict": {name: tensor + 1 for name, tensor in weights.items()}},
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "best": torch.tensor(0.5),
        "metadata": {"source": "hub"},
    }
    checkpoint = read(save(tmp_path / "in.pth", value))
    assert checkpoint.nesting == ("model", "state_dict")
    assert checkpoint.prefix == "module."
    assert list(checkpoint.tensors) == [f"layer{index}.weight" for index in range(4)]
    assert torch.equal(checkpoint.tensors["layer3.weight"], torch.full((2,), 3.0))
    assert checkpoint.metadata == {"source": "hub"}
    assert checkpoint.extra_entries == {
        "epoch": 7,
        "classes": ["stop", "go"],
        "args": {"lr": 0.1, "betas": (0.9, 0.99)},
        "best": torch.tensor(0.5),
        "model/arch": "resnet18",
    }
    assert set(checkpoint.left_out) == {"model_ema", "optimizer"}
    new = {name: tensor * 0 for name, tensor in checkpoint.tensors.items()}
    write(tmp_path / "out.pth", new, like=checkpoint, format=Format.PICKLE, metadata={"tool": "bcu"})
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(written) == ["epoch", "classes", "args", "model", "best", "metadata"]
    assert written["metadata"] == {"source": "hub", "tool": "bcu"}
    assert written["model"]["arch"] == "resnet18"
    assert list(written["model"]["state_dict"]) == list(weights)
    again = read(tmp_path / "out.pth")
    assert again.extra_entries == checkpoint.extra_entries
    assert again.left_out == ()


@pytest.mark.parametrize("order", [("ema", "net"), ("net", "ema"), ("state_dict_ema", "state_dict")])
def test_an_average_is_taken_only_if_there_is_nothing_else(tmp_path: Path, order: tuple[str, str]) -> None:
    tables = {key: {"a": torch.ones(1), "b": torch.ones(1)} for key in order}
    for key in order:
        if "ema" in key:
            tables[key] |= {"n_averaged": torch.tensor(3)} if len(order[0]) > 20 else {}
    checkpoint = read(save(tmp_path / "in.pth", tables))
    assert checkpoint.nesting == (next(key for key in order if "ema" not in key),)
    assert checkpoint.left_out == (next(key for key in order if "ema" in key),)
    alone = read(save(tmp_path / "alone.pth", {"ema": {"a": torch.ones(1)}}))
    assert alone.nesting == ("ema",)


def test_the_larger_table_wins(tmp_path: Path) -> None:
    value = {"head": {"w": torch.ones(1)}, "net": {str(index): torch.ones(1) for index in range(9)}}
    assert read(save(tmp_path / "in.pth", value)).nesting == ("net",)


@pytest.mark.parametrize("value", [{}, [torch.ones(2)], {"epoch": 3}, {"optimizer": {"a": torch.ones(2)}}, 3])
def test_no_weights(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        read(save(tmp_path / "in.pth", value))


def test_a_table_that_holds_itself(tmp_path: Path) -> None:
    value: dict[str, Any] = {"a": torch.ones(1)}
    value["self"] = value
    assert read(save(tmp_path / "in.pth", value)).left_out == ("self",)


def test_sparse_weights_are_refused_without_an_accusation(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match="_rebuild_sparse_tensor, which weights do not need"):
        read(save(tmp_path / "sparse.pth", {"a": torch.eye(3).to_sparse()}))


def test_conversion_between_formats(tmp_path: Path) -> None:
    source = read(save(tmp_path / "in.pth", {"net": {"module.a": torch.ones(2)}, "epoch": 1}))
    write(
        tmp_path / "m.safetensors",
        source.tensors,
        like=source,
        format=Format.SAFETENSORS,
        metadata={"k": "v"},
    )
    middle = read(tmp_path / "m.safetensors")
    assert middle.prefix == "module."
    write(tmp_path / "out.pth", middle.tensors, like=middle, format=Format.PICKLE, metadata={})
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(back) == ["state_dict", "metadata"]
    assert list(back["state_dict"]) == ["module.a"]
    assert back["metadata"] == {"k": "v"}
    with pytest.raises(ValueError, match="does not write torchscript"):
        write(tmp_path / "x.pt", {}, format=Format.TORCHSCRIPT, metadata={})
