"""A corpus of hostile, broken and foreign files, and of harmless ones, made on the spot.

    python tests/hostile.py FOLDER

writes it into FOLDER/hostile, FOLDER/broken, FOLDER/foreign and FOLDER/harmless. Whatever of it runs when a
file is opened creates FOLDER/canary.
"""

from __future__ import annotations

import io
import json
import marshal
import pickle
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import hostile_forms
import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

HEAD = b"\x80\x02"


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def ask(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """GLOBAL and REDUCE."""
    return ask(module, name) + b"(" + b"".join(arguments) + b"tR"


def program(*parts: bytes) -> bytes:
    return HEAD + b"".join(parts) + b"."


def short(value: str) -> bytes:
    """SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def calls(canary: Path) -> dict[str, bytes]:
    """Pickles that run something when they are opened, by how."""
    touch = text(f"touch {canary}")
    code = text(f"open({str(canary)!r}, 'w').close()")
    function = marshal.dumps(compile(f"open({str(canary)!r}, 'w')", "x", "exec"))
    nested = program(call("os", "system", touch))
    as_bytes = b"B" + struct.pack("<I", len(nested)) + nested
    made = {
        f"reduce_{module}_{name}".replace(".", "_"): program(call(module, name, *arguments))
        for module, name, *arguments in [
            ("os", "system", touch),
            ("posix", "system", touch),
            ("nt", "system", touch),
            ("os", "popen", touch),
            ("os", "execl", text("/bin/sh"), text("sh")),
            ("subprocess", "check_output", touch, b"K\x01"),
            ("subprocess", "Popen", b"(" + text("touch") + text(str(canary)) + b"l"),
            ("builtins", "eval", code),
            ("builtins", "exec", code),
            ("builtins", "compile", code, text("x"), text("exec")),
            ("builtins", "__import__", text("antigravity")),
            ("builtins", "open", text(str(canary)), text("w")),
            ("builtins", "getattr", text("x"), text("__class__")),
            ("__builtin__", "eval", code),
            ("commands", "getoutput", touch),
            ("runpy", "run_path", text("/tmp/x.py")),
            ("runpy", "_run_code", code),
            ("importlib", "import_module", text("antigravity")),
            ("torch.hub", "load", text("owner/repo"), text("model")),
            ("torch.serialization", "load", text("/tmp/other.pt")),
            ("torch", "load", text("/tmp/other.pt")),
            ("torch.jit", "load", text("/tmp/other.pt")),
            ("torch.utils.cpp_extension", "load_inline", text("x"), text("int main;")),
            ("torch._inductor.codecache", "compile_file", text("x.c"), text("x.so"), touch),
            ("torch.jit.unsupported_tensor_ops", "execWrapper", code),
            ("torch.utils.collect_env", "run", touch),
            ("torch.fx.graph_module", "_forward_from_src", code),
            ("numpy.testing._private.utils", "runstring", code),
            ("numpy", "load", text("/tmp/x.npy")),
            ("pickle", "loads", as_bytes),
            ("_pickle", "loads", as_bytes),
            ("joblib", "load", text("/tmp/x")),
            ("dill", "loads", as_bytes),
            ("ctypes", "CDLL", text("/tmp/x.so")),
            ("pty", "spawn", text("/bin/sh")),
            ("webbrowser", "open", text("file:///etc/passwd")),
            ("socket", "create_connection", b"(" + text("127.0.0.1") + b"K\x07t"),
            ("urllib.request", "urlretrieve", text("file:///etc/hostname"), text(str(canary))),
            ("shutil", "copy", text("/etc/hostname"), text(str(canary))),
            ("pathlib", "Path.touch", text(str(canary))),
            ("code", "interact"),
            ("timeit", "timeit", code, code),
            ("cProfile", "run", code),
            ("bdb", "Bdb"),
            ("pip", "main", b"(" + text("install") + text("x") + b"l"),
            ("operator", "attrgetter", text("system")),
            ("functools", "partial", ask("os", "system"), touch),
            ("lib2to3.pgen2.grammar", "Grammar.loadpkl", text("/tmp/x")),
            ("asyncio.unix_events", "_UnixSubprocessTransport._start"),
            ("collections", "OrderedDict.__init__.__globals__"),
            ("torch._utils", "_rebuild_tensor.__globals__"),
        ]
    }
    marshalled = b"B" + struct.pack("<I", len(function)) + function
    loaded = call("marshal", "loads", marshalled)
    made["reduce_function_of_marshal"] = program(call("types", "FunctionType", loaded, b"}"), b")R")
    return made


def obfuscated(canary: Path) -> dict[str, bytes]:
    """Pickles that hide what they ask for."""
    touch = text(f"touch {canary}")
    run = b"(" + touch + b"tR"
    system = program(call("os", "system", touch))
    four = b"\x80\x04"
    return {
        "stack_global": four + short("os") + short("system") + b"\x93" + run + b".",
        "stack_global_memo": four
        + short("system")
        + b"\x94"
        + short("os")
        + b"\x940h\x01h\x00\x93"
        + run
        + b".",
        "stack_global_swapped": four
        + short("x")
        + b"\x940"
        + short("os")
        + short("system")
        + b"\x93"
        + run
        + b".",
        "stack_global_dup": four + short("code") + b"2\x93.",
        "stack_global_of_a_number": four + short("os") + b"K\x07\x93" + run + b".",
        "stack_global_of_a_call": four + b"cbuiltins\nstr\n)R" + short("system") + b"\x93" + run + b".",
        "stack_global_bytes": four + b"C\x02osC\x06system\x93" + run + b".",
        "stack_global_long_text": four
        + b"\x8d"
        + struct.pack("<Q", 2)
        + b"os"
        + short("system")
        + b"\x93"
        + run
        + b".",
        "frame_too_long": four + b"\x95" + struct.pack("<Q", 2**40) + system[2:],
        "frame_too_short": four + b"\x95" + struct.pack("<Q", 3) + system[2:],
        "protocol_0": b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.",
        "protocol_0_after_text": b"S'a model'\n0cos\nsystem\n(S'true'\ntR.",
        "protocol_255": b"\x80\xff" + system[2:],
        "inst": b"(S'true'\nios\nsystem\n.",
        "obj": HEAD + b"(" + ask("os", "system") + touch + b"o.",
        "newobj": HEAD + ask("subprocess", "Popen") + b"(" + touch + b"t\x81.",
        "newobj_ex": four + ask("subprocess", "Popen") + b"(" + touch + b"t}\x92.",
        "build": HEAD + ask("site", "_Printer") + b")\x81}" + text("x") + touch + b"sb.",
        "extension": HEAD + b"\x82\x07)R.",
        "extension_4": HEAD + b"\x84" + struct.pack("<i", 70_000) + b")R.",
        "persistent_id": HEAD + text("whatever") + b"Q.",
        "persistent_id_protocol_0": b"Pwhatever\n.",
        "buffer": b"\x80\x05\x97.",
        "harmless_then_evil": program(b"}0", call("os", "system", touch)),
        "two_pickles": program(b"}") + system,
        "evil_then_broken": HEAD + call("os", "system", touch) + b"\xff\xff\xff",
        "evil_then_nothing": HEAD + call("os", "system", touch),
        "memo_unset": HEAD + b"h\x07" + call("os", "system", touch) + b".",
        "memo_far": HEAD + b"}r\xff\xff\xff\xff" + call("os", "system", touch) + b".",
        "memo_negative": b"}p-1\n" + call("os", "system", touch) + b".",
        "pop_mark": HEAD + b"(0" + call("os", "system", touch) + b".",
        "dead_code": HEAD + call("os", "system", touch) + b"0}.",
        "unicode_name": HEAD + "c\N{CYRILLIC SMALL LETTER O}s\nsystem\n".encode() + run + b".",
        "newline_tricks": HEAD + b"cos\r\nsystem\r\n" + run + b".",
    }


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


class Saves(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return x


class FromFile(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/hostname", size=4, dtype=torch.uint8).sum()


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def scripted(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def exported(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module, (torch.rand(1, 3, 8, 8),)), buffer)
    return buffer.getvalue()


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def changed(data: bytes, **members: bytes) -> bytes:
    """A zip of torch with members added or replaced; ``_`` stands for a dot."""
    held = members_of(data)
    root = next(iter(held)).partition("/")[0]
    return zipped(held | {f"{root}/{name.replace('_', '.')}": content for name, content in members.items()})


def archives(canary: Path) -> dict[str, bytes]:
    """Zips that hold, hide or smuggle something."""
    state = Small().state_dict()
    good = saved(state)
    system = program(call("os", "system", text(f"touch {canary}")))
    made = {
        "zip_data_pkl": changed(good, data_pkl=system),
        "zip_other_pkl": changed(good, more_pkl=system),
        "zip_whole_model": saved(Small()),
        "zip_before_everything": b"junk" + good,
        "zip_behind_a_picture": b"\x89PNG\r\n\x1a\n" + bytes(64) + changed(good, data_pkl=system),
        "zip_behind_a_text": b"# Model card\n" + changed(good, data_pkl=system),
        "zip_behind_a_pickle": program(b"}") + changed(good, data_pkl=system),
        "zip_in_safetensors": safetensors_bytes(
            {"w": torch.frombuffer(bytearray(changed(good, data_pkl=system)), dtype=torch.uint8)}
        ),
        "script_save": scripted(Saves(str(canary))),
        "script_from_file": scripted(FromFile()),
        "script_pickle": changed(scripted(Small()), data_pkl=system),
        "script_constants": changed(scripted(Small()), constants_pkl=system),
    }
    code = next(name for name in members_of(scripted(Small())) if name.endswith(".py"))
    script = members_of(scripted(Small()))
    made["script_twin_in_capitals"] = zipped({code.upper(): script[code]} | script)
    made["zip_twin_in_capitals"] = changed(good, DATA_PKL=system)
    for name, line in {
        "script_unparsable": b"\n@@@ this is no code\n",
        "script_class": b"\nclass X(NamedTuple):\n  y: __torch__.torch.classes.evil.Evil\n",
    }.items():
        made[name] = zipped(script | {code: script[code] + line})
    streams = saved(state, _use_new_zipfile_serialization=False)
    made["legacy_before"] = system + streams
    made["legacy_third_stream"] = _third_stream(streams, system)
    return made


def _third_stream(data: bytes, system: bytes) -> bytes:
    stream = io.BytesIO(data)
    for _ in range(2):
        pickle.load(stream)
    return data[: stream.tell()] + system + data[stream.tell() :]


def broken() -> dict[str, bytes]:
    """Files that are damaged, claim what cannot be, or are built as no library builds them."""
    state = Small().state_dict()
    good = saved(state)
    held = members_of(good)
    root = next(iter(held)).partition("/")[0]
    safe = safetensors_bytes(state)
    legacy = saved(state, _use_new_zipfile_serialization=False)
    script = scripted(Small())
    made = {
        "zip_absolute": zipped(held | {"/etc/cron.d/x": b"x"}),
        "zip_parent": zipped(held | {f"{root}/../../x": b"x"}),
        "zip_drive": zipped(held | {"C:/x": b"x"}),
        "zip_link": _with_link(held, root),
        "zip_twins": _with_twin(held, root),
        "zip_two_models": zipped(held | {"other/data.pkl": held[f"{root}/data.pkl"]}),
        "zip_bomb": zipped(held | {f"{root}/data/9": bytes(64 * 2**20)}, zipfile.ZIP_DEFLATED),
        "zip_encrypted": _patched_flags(good, 0x1),
        "zip_wrong_checksum": _wrong_checksum(good),
        "zip_no_directory": good[: -len(good) // 3],
        "zip_directory_lies": _directory_lies(good),
        "zip_huge_tensor": zipped(held | {f"{root}/data.pkl": _huge(held[f"{root}/data.pkl"])}),
        "zip_empty_pickle": changed(good, data_pkl=b""),
        "zip_missing_storage": zipped(
            {name: data for name, data in held.items() if name != f"{root}/data/0"}
        ),
        "safetensors_truncated": safe[:-5],
        "safetensors_header_cut": safe[:40],
        "safetensors_trailing": safe + b"more",
        "legacy_truncated": legacy[: len(legacy) // 2],
        "script_truncated": script[: len(script) // 2],
        "pickle_truncated": pickle.dumps(list(range(1000)))[:-7],
        "pickle_deep": HEAD + b"]" * 200_000 + b"a" * 199_999 + b".",
        "pickle_long_number": b"I" + b"9" * 100_000 + b"\n.",
        "pickle_tower": HEAD + b"]" + b"(2220l" * 30 + b".",
    }
    for name, header in {
        "duplicate": b"{" + b",".join([_entries(("a", [3], [0, 3]))[1:-1]] * 2) + b"}",
        "overlap": _entries(("a", [2], [0, 2]), ("b", [2], [1, 3])),
        "gap": _entries(("a", [1], [0, 1]), ("b", [1], [2, 3])),
        "outside": _entries(("a", [900], [0, 900])),
        "negative": _entries(("a", [-1], [0, -1])),
        "overflow": _entries(("a", [2**62, 2**62], [0, 3])),
        "backwards": _entries(("a", [3], [3, 0])),
        "fraction": _entries(("a", [1.5], [0, 3])),
        "boolean": _entries(("a", [True, 3], [0, 3])),
        "dimensions": _entries(("a", [1] * 100, [0, 1])),
        "no_json": b"{not json}",
        "deep_json": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "list": b'[{"a":1}]',
        "metadata": b'{"__metadata__":{"a":1}}',
        "utf16": '{"a":1}'.encode("utf-16"),
        "dtype": b'{"a":{"dtype":"PY","shape":[3],"data_offsets":[0,3]}}',
        "empty": b"{}",
    }.items():
        made[f"safetensors_{name}"] = struct.pack("<Q", len(header)) + header + b"abc" * (name != "empty")
    made["safetensors_huge_header"] = struct.pack("<Q", 2**31) + b"{" + bytes(64)
    return made


def field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value % 2**64)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    last = bytes([value & 0x7F])
    return last if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


def onnx_tensor(name: str, dims: list[int], data: bytes, *more: bytes, kind: int = 1) -> bytes:
    """A TensorProto; of float32, if nothing else is said."""
    return b"".join(field(1, size) for size in dims) + field(2, kind) + field(8, name) + data + b"".join(more)


def onnx_outside(name: str, dims: list[int], **said: str) -> bytes:
    """A TensorProto whose bytes are in another file."""
    pairs = b"".join(field(13, field(1, key) + field(2, value)) for key, value in said.items())
    return onnx_tensor(name, dims, pairs, field(14, 1))


def onnx_node(op: str, inputs: list[str], outputs: list[str], *attributes: bytes, domain: str = "") -> bytes:
    """A NodeProto."""
    names = b"".join(field(1, name) for name in inputs) + b"".join(field(2, name) for name in outputs)
    return names + field(4, op) + b"".join(field(5, one) for one in attributes) + field(7, domain)


def onnx_graph(nodes: list[bytes], tensors: list[bytes]) -> bytes:
    """A GraphProto from "x" of 3 channels to "y"."""
    sizes = b"".join(field(1, size) for size in (field(2, "n"), field(1, 3), field(1, 8), field(1, 8)))
    image = field(1, "x") + field(2, field(1, field(1, 1) + field(2, sizes)))
    body = b"".join(field(1, node) for node in nodes) + b"".join(field(5, tensor) for tensor in tensors)
    return body + field(11, image) + field(12, field(1, "y"))


def onnx_model(graph: bytes, *more: bytes) -> bytes:
    """A ModelProto."""
    return field(1, 8) + field(2, "pytorch") + field(7, graph) + field(8, field(2, 17)) + b"".join(more)


def onnx_of(state: dict[str, torch.Tensor], **changed: bytes) -> bytes:
    """:class:`Small` as an ONNX model; ``changed`` replaces tensors, with ``_`` for the dot."""
    tensors = {
        name.replace(".", "_"): onnx_tensor(name, list(tensor.shape), field(9, tensor.numpy().tobytes()))
        for name, tensor in state.items()
    }
    return onnx_model(onnx_graph(ONNX_NODES, list((tensors | changed).values())))


ONNX_NODES = [
    onnx_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"]),
    onnx_node("GlobalAveragePool", ["a"], ["b"]),
    onnx_node("Flatten", ["b"], ["c"]),
    onnx_node("Gemm", ["c", "fc.weight", "fc.bias"], ["y"], field(1, "transB") + field(3, 1) + field(20, 2)),
]


def onnx_hostile() -> dict[str, bytes]:
    """ONNX models that reach out of their folder, or for code of somebody's own."""
    state = Small().state_dict()
    good = onnx_of(state)
    made = {
        f"external_{name}": onnx_of(state, fc_bias=onnx_outside("fc.bias", [5], location=location))
        for name, location in {
            "parent": "../../../../etc/passwd",
            "absolute": "/etc/passwd",
            "hidden_parent": "weights/../../x",
            "drive": "C:\\Windows\\x",
            "share": "\\\\server\\share",
            "nowhere": "",
        }.items()
    }
    custom = onnx_node("Run", ["x"], ["z"], domain="evil")
    inner = onnx_node("If", ["x"], ["z"], field(1, "then_branch") + field(6, onnx_graph([custom], [])))
    context = onnx_node("EPContext", ["x"], ["z"], domain="com.microsoft")
    for name, node in {"custom": custom, "custom_in_a_branch": inner, "compiled": context}.items():
        made[name] = onnx_model(onnx_graph([*ONNX_NODES, node], []))
    function = field(1, "f") + field(7, custom) + field(10, "own")
    made["custom_in_a_function"] = onnx_model(onnx_graph(ONNX_NODES, []), field(25, function))
    made["two_formats"] = good + zipped({"x": b"x"})
    return {f"onnx_{name}": data for name, data in made.items()}


def onnx_broken() -> dict[str, bytes]:
    """ONNX models that are damaged, or claim what cannot be."""
    state = Small().state_dict()
    good = onnx_of(state)
    sizes = {
        "huge": [2**31, 2**31],
        "overflow": [2**62, 4],
        "negative": [-5],
        "short": [4],
        "ranks": [1] * 999,
    }
    deep = onnx_graph(ONNX_NODES, [])
    for _ in range(100):
        deep = onnx_graph([onnx_node("If", ["x"], ["z"], field(1, "then_branch") + field(6, deep))], [])
    bias = onnx_tensor("fc.bias", [5], field(9, bytes(20)))
    made = {
        **{
            name: onnx_of(state, fc_bias=onnx_tensor("fc.bias", dims, field(9, bytes(20))))
            for name, dims in sizes.items()
        },
        "duplicate": onnx_of(state, other=bias),
        "two_values": onnx_model(onnx_graph([*ONNX_NODES, ONNX_NODES[0]], [])),
        "two_graphs": good + field(7, onnx_graph(ONNX_NODES, [])),
        "two_places": onnx_of(state, fc_bias=bias + field(4, bytes(20))),
        "type": onnx_of(state, fc_bias=onnx_tensor("fc.bias", [5], field(9, bytes(20)), kind=99)),
        "text": onnx_of(state, fc_bias=onnx_tensor("fc.bias", [1], field(6, b"x"), kind=8)),
        "missing": onnx_of(state, fc_bias=onnx_outside("fc.bias", [5], location="nowhere.bin")),
        "offset": onnx_of(state, fc_bias=onnx_outside("fc.bias", [5], location="w", offset="-1")),
        "length": onnx_of(state, fc_bias=onnx_outside("fc.bias", [5], location="w", length=str(2**40))),
        "deep": onnx_model(deep),
        "many": onnx_model(field(1, b"") * 310_000),
        "truncated": good[: len(good) // 2],
        "no_graph": field(1, 8) + field(2, "pytorch"),
        "redefined": onnx_model(onnx_graph(ONNX_NODES, []), field(25, field(1, "Gemm"))),
    }
    return {f"onnx_{name}": data for name, data in made.items()}


def shared(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with a list of a thousand times a list of a thousand times a list, and so on."""
    value: list[Any] = [1.0]
    for _ in range(5):
        value = [value] * 1000
    return {"state_dict": state, "log": value}


def _entries(*entries: tuple[str, list[Any], list[int]]) -> bytes:
    header = {
        name: {"dtype": "U8", "shape": shape, "data_offsets": offsets} for name, shape, offsets in entries
    }
    return json.dumps(header).encode()


def _with_link(held: dict[str, bytes], root: str) -> bytes:
    buffer = io.BytesIO(zipped(held))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo(f"{root}/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def _with_twin(held: dict[str, bytes], root: str) -> bytes:
    buffer = io.BytesIO(zipped(held))
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(f"{root}/data.pkl", program(call("os", "system", text("true"))))
    return buffer.getvalue()


def _patched_flags(data: bytes, flag: int) -> bytes:
    """The zip with a bit set in the flags of every entry of its directory (PK 1 2, flags at 8)."""
    patched = bytearray(data)
    at = patched.find(b"PK\x01\x02")
    while at >= 0:
        patched[at + 8] |= flag
        at = patched.find(b"PK\x01\x02", at + 4)
    return bytes(patched)


def _wrong_checksum(data: bytes) -> bytes:
    """The zip with the checksum of its first entry changed in the directory: torch does not compare it."""
    patched = bytearray(data)
    patched[patched.find(b"PK\x01\x02") + 16] ^= 0xFF
    return bytes(patched)


def _directory_lies(data: bytes) -> bytes:
    """The zip whose directory calls its first member by another name than its own header."""
    at = data.rfind(b"data.pkl")
    return data[:at] + b"dota.pkl" + data[at + 8 :]


def _huge(data_pickle: bytes) -> bytes:
    """A pickle of torch in which a size of 4 became 2**31 - 1."""
    return data_pickle.replace(b"K\x04", b"J\xff\xff\xff\x7f", 1)


def foreign() -> dict[str, bytes]:
    """Files of other kinds under names of models."""
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    arrays = io.BytesIO()
    np.savez(arrays, a=np.zeros(3))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return {
        "npy": array.getvalue(),
        "npz": arrays.getvalue(),
        "gguf": b"GGUF\x03\0\0\0" + bytes(32),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(64),
        "keras": zipped({"config.json": b"{}", "metadata.json": b"{}", "model.weights.h5": b"x"}),
        "tflite": b"\x1c\0\0\0TFL3" + bytes(64),
        "onnx": b"\x08\x08\x12\x07pytorch\x1a\x052.0.0" + bytes(16),
        "sklearn": b"\x80\x04\x8c\x14sklearn.linear_model\x8c\x05Ridge\x93)R.",
        "joblib": b"\x80\x04\x8c\x16joblib.numpy_pickle\x8c\x11NumpyArrayWrapper\x93)\x81.",
        "torch_export": zipped({"m/archive_format": b"pt2", "m/models/model.json": b"{}"}),
        "tar": tar.getvalue(),
        "gzip": b"\x1f\x8b\x08\0" + zlib.compress(b"x"),
        "text": b"# Model card\n",
        "page": b"<!DOCTYPE html><html>Log in</html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "empty": b"",
        "zeros": bytes(4096),
        "several_disks": hostile_forms.SEVERAL_DISKS,
        "image_and_tar": hostile_forms.image_and_tar(),
        "image_and_hdf5": hostile_forms.image_and_hdf5(),
        "program": b"\x7fELF" + bytes(64),
    }


def harmless() -> dict[str, bytes]:
    """Files as people ordinarily have them."""
    network = Small()
    state = network.state_dict()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    training = {"state_dict": state, "optimizer": optimizer.state_dict(), "epoch": 3, "best": float("inf")}
    return {
        "state_dict.pth": saved(state),
        "state_dict_legacy.pth": saved(state, _use_new_zipfile_serialization=False),
        "parameters.pt": saved(dict(network.named_parameters())),
        "checkpoint.pth.tar": saved(training),
        "parallel.pt": saved({"model": {f"module.{name}": tensor for name, tensor in state.items()}}),
        "half.bin": saved({name: tensor.bfloat16() for name, tensor in state.items()}),
        "average.ckpt": saved({"model": state, "model_ema": state, "args": {"lr": 0.1, "tags": ["a", "b"]}}),
        "model.safetensors": safetensors_bytes(state, metadata={"format": "pt"}),
        "script.pt": scripted(network),
        "model.onnx": onnx_of(state),
        "nested.pt": saved({"net": {"weights": state}, "history": [0.5, float("nan")]}),
    }


REFUSED = frozenset(
    {
        "memo_far",
        "memo_negative",
        "memo_unset",
        "persistent_id",
        "persistent_id_protocol_0",
        "unicode_name",
        "script_twin_in_capitals",
        "zip_twin_in_capitals",
        "script_class",
    }
)
"""Hostile files that are broken before they could run anything, or only where something else is installed."""


def files(canary: Path) -> dict[str, dict[str, bytes]]:
    """All files: kind of file to name to content."""
    state = Small().state_dict()
    good, legacy = saved(state), saved(state, _use_new_zipfile_serialization=False)
    members = members_of(good)
    pickles = calls(canary) | obfuscated(canary) | hostile_forms.pickles(canary)
    zips = archives(canary) | hostile_forms.archives(canary, members, good)
    odd = broken() | hostile_forms.broken(canary, members, good, legacy)
    return {
        "hostile": {f"{name}.pkl": data for name, data in pickles.items()}
        | {f"{name}.pt": data for name, data in zips.items()}
        | {f"{name}.onnx": data for name, data in onnx_hostile().items()},
        "broken": {f"{name}.pt": data for name, data in odd.items()}
        | {f"{name}.onnx": data for name, data in onnx_broken().items()},
        "foreign": {f"{name}.pt": data for name, data in foreign().items()},
        "harmless": harmless(),
    }


def write(folder: Path) -> dict[str, list[Path]]:
    """Write the corpus; returns its files by kind."""
    written: dict[str, list[Path]] = {}
    for kind, contents in files(folder / "canary").items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            (folder / kind / name).write_bytes(data)
            written.setdefault(kind, []).append(folder / kind / name)
    return written


if __name__ == "__main__":
    made = write(Path(sys.argv[1]).resolve())
    sys.stdout.write(", ".join(f"{len(paths)} {kind}" for kind, paths in made.items()) + "\n")
