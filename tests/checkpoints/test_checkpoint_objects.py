"""Python objects beside weights: read past where they do nothing, found where they could do something."""

from __future__ import annotations

import datetime as dt
import types
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import hostile
import ordinary
import pytest
import torch
from checkpoint_files import rewritten, saved_bytes, zip_of

from bcu_cli.checkpoints import Format, inspect_only, read, write
from bcu_cli.checkpoints.archive import TorchArchive
from bcu_cli.checkpoints.pickles import saved
from bcu_cli.errors import CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = hostile.Small().state_dict()


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return ordinary.write(tmp_path_factory.mktemp("ordinary"))


def test_a_hundred_ordinary_checkpoints_are_read(hundred: list[Path]) -> None:
    wrong = {}
    for path in hundred:
        try:
            checkpoint = read(path)
        except CheckpointError as error:
            wrong[path.name] = error.message
            continue
        assert {name.removeprefix("module.") for name in checkpoint.tensors} >= set(WEIGHTS), path
        assert not checkpoint.is_unsafe
    assert wrong == {}
    assert len(hundred) >= 100


def test_what_is_left_out_is_named(hundred: list[Path]) -> None:
    left = {path.name: read(path).left_out for path in hundred}
    assert left["beside_timedelta.pt"] == ("extra (datetime.timedelta)",)
    assert left["beside_path_313.pt"] == ("extra (pathlib._local.PosixPath)",)
    assert left["beside_range.pt"] == ("extra (builtins.range)",)
    assert left["beside_numpy_array.pt"] == ("extra (numpy.ndarray)",)
    assert left["beside_namespace.pt"] == ("extra (argparse.Namespace)",)
    assert left["beside_enum.pt"] == ("extra (transformers.trainer_utils.SchedulerType)",)
    assert left["beside_random_state.pt"] == ()
    assert left["timm.pth"][:3] == ("state_dict", "optimizer", "args (argparse.Namespace)")
    (path,) = (path for path in hundred if path.name == "beside_timedelta.pt")
    assert [(note.rule, note.severity) for note in inspect_only(path).findings] == [("pickle-object", "note")]


def test_the_command_says_it_and_ends_as_without_the_object(tmp_path: Path, bcu: Any) -> None:
    weights = {"head.weight": torch.ones(2, 3), "head.bias": torch.ones(2)}
    for name, value in [("with", dt.timedelta(3)), ("without", 3)]:
        (tmp_path / name).write_bytes(saved_bytes({"state_dict": weights, "took": value}))
    ran = bcu("inspect", tmp_path / "with")
    assert ran.code == bcu("inspect", tmp_path / "without").code
    assert "took (datetime.timedelta)" in ran.out
    (file,) = bcu("inspect", tmp_path / "with", "--json").json["files"]
    assert file["safe"] is True
    assert file["left_out"] == ["took (datetime.timedelta)"]


def test_plain_values_beside_objects_are_written_back(tmp_path: Path, hundred: list[Path]) -> None:
    (path,) = (path for path in hundred if path.name == "timm.pth")
    source = read(path)
    write(tmp_path / "out.pth", source.tensors, like=source, format=Format.PICKLE)
    again = torch.load(tmp_path / "out.pth", weights_only=True)
    assert (again["arch"], again["epoch"], again["version"]) == ("resnet18", 3, 2)
    assert torch.equal(again["state_dict_ema"]["fc.bias"], source.tensors["fc.bias"])


# What could do something is found, however it is disguised.

PLAIN = hostile.text("x")
SETS_ATTRIBUTES = b"}" + hostile.text("a") + PLAIN + b"sb"
ACTING = {
    "function_of_a_library": hostile.call("somelib.tools", "run", PLAIN),
    "constructor_with_a_command": hostile.call("paramiko.proxy", "ProxyCommand", hostile.text("reboot")),
    "constructor_with_a_line": hostile.call("somelib", "Job", hostile.text("touch x")),
    "constructor_with_a_path": hostile.call("h5py", "Thing", hostile.text("/etc/passwd"), hostile.text("w")),
    "constructor_with_a_list": hostile.call("somelib", "Job", b"]" + PLAIN + b"a"),
    "module_through_a_library": hostile.ask("somelib", "tempfile.TemporaryDirectory")
    + b")\x81"
    + SETS_ATTRIBUTES,
    "reference_to_the_system": hostile.ask("os", "system"),
    "reference_through_a_library": hostile.ask("somelib", "os.system"),
    "partial_of_the_system": hostile.call("functools", "partial", hostile.ask("os", "system"), PLAIN),
    "partial_called": hostile.call("functools", "partial", hostile.ask("somelib", "run")) + b")R",
    "member_called": hostile.call("builtins", "getattr", hostile.ask("somelib", "Job"), hostile.text("run"))
    + b")R",
    "member_hidden": hostile.call(
        "builtins", "getattr", hostile.ask("somelib", "Job"), hostile.text("__globals__")
    ),
    "member_of_a_module": hostile.call(
        "builtins", "getattr", hostile.ask("somelib", "tools"), hostile.text("run")
    ),
    "numpy_calls_it": hostile.call(
        "numpy.random._pickle", "__randomstate_ctor", PLAIN, hostile.ask("somelib", "run")
    ),
    "numpy_calls_a_partial": hostile.call(
        "numpy.random._pickle",
        "__bit_generator_ctor",
        hostile.call("functools", "partial", hostile.ask("somelib", "run")),
    ),
    "object_of_the_library": hostile.ask("subprocess", "Popen") + b")\x81" + SETS_ATTRIBUTES,
    "pickle_in_a_state": hostile.ask("somelib", "CloudpickleWrapper") + b")\x81" + SETS_ATTRIBUTES,
    "pickle_in_torch": hostile.ask("torch.utils.data.datapipes.datapipe", "MapDataPipe")
    + b")\x81"
    + SETS_ATTRIBUTES,
    "network_of_the_machine": hostile.call("uuid", "getnode"),
    "method_of_a_value": hostile.call("pathlib", "Path.touch", PLAIN),
    "lazy_call": hostile.call("builtins", "map", hostile.ask("somelib", "run"), b"]"),
    "import_changed": hostile.ask("somelib", "Job") + SETS_ATTRIBUTES,
    "operator": hostile.call("operator", "getitem", hostile.ask("somelib", "Job"), PLAIN),
    "reconstructor": hostile.call(
        "copyreg", "_reconstructor", PLAIN, hostile.ask("builtins", "object"), b"N"
    ),
    "removed_module": hostile.call("telnetlib", "Telnet", hostile.text("host")),
    "bytes_as_a_model": hostile.call("torch.storage", "_load_from_bytes", PLAIN),
    "class_made": hostile.call("builtins", "type", PLAIN, b")", b"}"),
}


@pytest.mark.parametrize("name", ACTING)
@pytest.mark.parametrize("beside", [True, False])
def test_what_could_act_is_found(tmp_path: Path, name: str, beside: bool) -> None:
    path = tmp_path / "m.pt"
    inside = hostile.ask("datetime", "timedelta") + b"K\x01\x85R" if beside else b"N"
    data = hostile.program(b"}" + hostile.text("a") + inside + b"s0" + ACTING[name])
    zip_of(path, {"a/data.pkl": data, "a/version": b"3\n"})
    assert inspect_only(path).is_unsafe
    with pytest.raises(UnsafeFileError):
        read(path)


class Outer(torch.nn.Module):
    """A network whose only tensor is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("value", [Outer(), hostile.Small(), {"state_dict": WEIGHTS, "model": Outer()}])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whole_networks_are_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "m.pt").write_bytes(saved_bytes(value))
    with pytest.raises(UnsafeFileError, match="object"):
        read(tmp_path / "m.pt")


def test_objects_in_a_pickle_that_others_open_without_limit_are_unsafe(tmp_path: Path) -> None:
    data = hostile.members_of(hostile.exported(hostile.Small().eval()))
    member = next(name for name in data if "sample_inputs" in name)
    data[member] = hostile.saved(((torch.ones(1),), {"a": types.SimpleNamespace()}))
    (tmp_path / "m.pt2").write_bytes(hostile.zipped(data))
    assert inspect_only(tmp_path / "m.pt2").is_unsafe


# The tensors are those that torch reads.


def every_tensor() -> dict[str, Any]:
    """Tensors of every type and form that weights have."""
    base = torch.arange(24.0).reshape(4, 6)
    complex_ = torch.randn(3, dtype=torch.complex64)
    made: dict[str, Any] = {
        "base": base,
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "expanded": torch.ones(1).expand(4),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "of_empty_shape": torch.empty(2, 0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "frozen": torch.nn.Parameter(torch.arange(3), requires_grad=False),
        "conjugate": complex_.conj(),
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
        "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "buffer": torch.nn.Buffer(torch.ones(3)),
    }
    with_attribute = torch.ones(2)
    with_attribute.note = "a"  # type: ignore[attr-defined]
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "a"  # type: ignore[attr-defined]
    made |= {"with_attribute": with_attribute, "parameter_with_attribute": parameter}
    names = (
        "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex64 "
    )
    names += "complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
    for name in names.split():
        dtype = getattr(torch, name)
        made[name] = torch.arange(48, dtype=torch.uint8).clamp(max=1 if name == "bool" else 255).view(dtype)
    return made


UNTYPED = ("uint16", "uint32", "uint64", "float8")


def as_bytes(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_tensors_are_those_of_torch_bit_by_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    tensors = every_tensor()
    if options:  # torch itself does not read these in a legacy file
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNTYPED)}
    path = tmp_path / "m.pt"
    path.write_bytes(saved_bytes({"state_dict": OrderedDict(tensors)}, **options))
    ours = read(path).tensors
    theirs = torch.load(path, weights_only=True)["state_dict"]
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        own = ours[name]
        assert (own.dtype, own.shape, own.stride()) == (tensor.dtype, tensor.shape, tensor.stride()), name
        assert own.storage_offset() == tensor.storage_offset(), name
        assert (own.is_conj(), own.is_neg()) == (tensor.is_conj(), tensor.is_neg()), name
        assert as_bytes(own) == as_bytes(tensor), name
    assert ours["view"].untyped_storage().data_ptr() == ours["base"].untyped_storage().data_ptr()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "m.pt").write_bytes(saved_bytes({"state_dict": WEIGHTS, "b": b"x"}, pickle_protocol=protocol))
    assert torch.equal(read(tmp_path / "m.pt").tensors["fc.weight"], WEIGHTS["fc.weight"])


def test_big_endian_storages_are_turned(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved_bytes({"a": torch.arange(5, dtype=torch.int16)}))
    swapped = torch.arange(5, dtype=torch.int16).numpy().byteswap().tobytes()
    path = rewritten(tmp_path / "a.pt", {"byteorder": b"big", "data/0": swapped}, to=tmp_path / "b.pt")
    assert read(path).tensors["a"].tolist() == [0, 1, 2, 3, 4] == torch.load(path)["a"].tolist()


def test_plain_values_are_those_of_torch(tmp_path: Path) -> None:
    value = {
        "w": torch.ones(1),
        "size": torch.Size([1, 2]),
        "set": {1, 2},
        "counter": Counter("aab"),
        "complex": 1j,
        "bytes": b"\xff\x00",
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "ordered": OrderedDict(a=(1, [2])),
    }
    path = tmp_path / "m.pt"
    path.write_bytes(saved_bytes(value))
    with TorchArchive(path) as archive:
        ours = saved._value_in_archive(archive)
    theirs = torch.load(path, weights_only=True)
    assert {key: (type(item), item) for key, item in ours.items()} == {
        key: (type(item), item) for key, item in theirs.items()
    }


def test_a_tensor_of_a_wider_type_than_its_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved_bytes({"a": torch.arange(8).to(torch.uint16)}))
    data = hostile.members_of((tmp_path / "a.pt").read_bytes())["archive/data.pkl"]
    wider = data.replace(b"uint16", b"uint64")
    assert wider != data
    path = rewritten(tmp_path / "a.pt", {"data.pkl": wider}, to=tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="reaches beyond its storage"):
        read(path)
