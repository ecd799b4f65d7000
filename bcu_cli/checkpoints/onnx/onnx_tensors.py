"""The tensors of an ONNX file: checking their sizes, finding their bytes, and reading them.

The bytes are in the tensor itself, in a field that depends on its type, or in another file (external data).
The path of that file is untrusted: the file is only opened if it lies in the model's folder.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints.archive import damaged
from bcu_cli.checkpoints.onnx.protobuf import Message, packed, signed
from bcu_cli.errors import CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

_TYPES = {  # ONNX type code: (name of the torch dtype, bytes per value, field that holds the values)
    1: ("float32", 4, "float_data"),
    2: ("uint8", 1, "int32_data"),
    3: ("int8", 1, "int32_data"),
    4: ("uint16", 2, "int32_data"),
    5: ("int16", 2, "int32_data"),
    6: ("int32", 4, "int32_data"),
    7: ("int64", 8, "int64_data"),
    9: ("bool", 1, "int32_data"),
    10: ("float16", 2, "int32_data"),
    11: ("float64", 8, "double_data"),
    12: ("uint32", 4, "uint64_data"),
    13: ("uint64", 8, "uint64_data"),
    16: ("bfloat16", 2, "int32_data"),
}
_LARGEST_SIZE = 2**31
_TYPED = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_BITS_OF_HALVES = ("float16", "bfloat16")  # stored as integers that hold their 16 bits
_EXTERNAL = 1
_MOST_ONE_BY_ONE, _MOST_ATTRIBUTE_BYTES = 2**24, 2**22
"""Limits of values in a tensor and bytes in an attribute that are read one by one, at 40 bytes for each."""
_MOST_DIMENSIONS = 64
_LAST_BYTES = bytes(range(0x80))
"""The bytes that can end a varint."""
LAYOUT_RULE = "onnx-layout"
EXTERNAL_RULE = "onnx-external-path"
_HINT = "export the model again, or get the file from its publisher again"


@dataclass(frozen=True)
class External:
    """The place of a tensor's bytes in another file.

    Attributes:
        file: The other file, which lies in the model's folder and is long enough.
        offset: Offset of the tensor's data, in bytes.
        length: Length of the tensor's data, in bytes.
    """

    file: Path
    offset: int
    length: int


def check_tensor(path: Path, tensor: Message) -> External | None:
    """Check that a tensor has as many bytes as its shape and type need, without reading them.

    Returns:
        The place of the bytes, if they are in another file.

    Raises:
        UnsafeFileError: The bytes are in a file outside the model's folder.
        CheckpointError: The bytes are missing or too few, or the tensor's type is unknown.
    """
    name = repr(tensor.get("name", "")[:60])
    dims = tensor["dims"]
    if tensor.get("data_type") not in _TYPES:
        message = f"{path}: {name} is of a type that bcu does not know ({tensor.get('data_type', 0)})"
        raise CheckpointError(message, "export it in float32", rule="unsupported-weights")
    if len(dims) > _MOST_DIMENSIONS or any(not 0 <= size < _LARGEST_SIZE for size in dims):
        raise unfit(path, f"{name} has the shape {dims[:8]}")
    if "segment" in tensor:
        raise unfit(path, f"{name} is only a part of a tensor")
    dtype, width, field = _TYPES[tensor["data_type"]]
    count = math.prod(dims)
    held = [key for key in _TYPED if tensor[key]]
    if tensor.get("data_location") == _EXTERNAL:
        if held or "raw_data" in tensor:
            raise unfit(path, f"{name} has its data in two places")
        return _external(path, tensor, name, count * width)
    if "raw_data" in tensor:
        found = len(tensor["raw_data"])
        fits = found == count * width and not held
    else:
        found = sum(map(_count_varints, tensor[field])) * width
        if field in {"float_data", "double_data"}:
            found = sum(map(len, tensor[field]))
        fits = found == count * width and held in ([], [field])
    if not fits:
        what = f"{name}, {dtype} of shape {dims[:8]}, takes {count * width:,} bytes and has {found:,}"
        raise damaged(path, what, "impossible-size")
    return None


def read_tensor(path: Path, tensor: Message) -> torch.Tensor:
    """Read a tensor into newly allocated memory.

    Raises:
        CheckpointError: The tensor is damaged, missing or of an unknown type, as in :func:`check_tensor`.
    """
    import torch

    external = check_tensor(path, tensor)
    dtype, _, field = _TYPES[tensor["data_type"]]
    if external is not None:
        with external.file.open("rb") as file:
            file.seek(external.offset)
            data = file.read(external.length)
        if len(data) != external.length:
            raise damaged(path, f"{external.file} became shorter", "onnx-data-missing")
    elif "raw_data" in tensor or field in {"float_data", "double_data"}:
        data = bytes(tensor["raw_data"]) if "raw_data" in tensor else b"".join(map(bytes, tensor[field]))
    elif math.prod(tensor["dims"]) > _MOST_ONE_BY_ONE:
        message = f"{path} holds {math.prod(tensor['dims']):,} numbers one by one"
        raise CheckpointError(message, "export it with raw data", rule="unsupported-weights")
    else:
        return _tensor_from_varints(tensor[field], dtype).reshape(tensor["dims"])
    if not data:
        return torch.empty(tensor["dims"], dtype=getattr(torch, dtype))
    if dtype == "bool":
        return (torch.frombuffer(bytearray(data), dtype=torch.uint8) != 0).reshape(tensor["dims"])
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(tensor["dims"])


def unfit(path: Path, why: str) -> CheckpointError:
    """The error for a file that violates the ONNX format."""
    return CheckpointError(f"{path} is no valid ONNX model: {why}", _HINT, rule=LAYOUT_RULE)


def unpack_numbers(chunks: list[memoryview], kind: str) -> list[Any]:
    """The values of a field of floating-point numbers.

    Args:
        chunks: The bytes of the field.
        kind: ``f`` for 32-bit or ``d`` for 64-bit numbers.

    Raises:
        ValueError: The bytes are too many, or no whole number of values.
    """
    data = b"".join(map(bytes, chunks))
    if len(data) > _MOST_ATTRIBUTE_BYTES:
        raise ValueError(f"{len(data):,} bytes is too long")
    if len(data) % struct.calcsize(kind):
        raise ValueError(f"{len(data)} bytes are no whole number of values")
    return list(struct.unpack(f"<{len(data) // struct.calcsize(kind)}{kind}", data))


def _count_varints(value: memoryview | int) -> int:
    if isinstance(value, int):
        return 1
    data = bytes(value)
    return len(data) - len(data.translate(None, _LAST_BYTES))


def _tensor_from_varints(values: list[memoryview | int], dtype: str) -> torch.Tensor:
    import torch

    def each() -> Iterator[int]:
        for value in values:
            yield from [signed(value)] if isinstance(value, int) else packed(value)

    integers = torch.tensor([value & 2**64 - 1 for value in each()], dtype=torch.uint64).view(torch.int64)
    if dtype in _BITS_OF_HALVES:
        return integers.to(torch.int16).view(getattr(torch, dtype))
    return integers.to(getattr(torch, dtype))


def _external(path: Path, tensor: Message, name: str, needed: int) -> External:
    """The place of a tensor's bytes: ``length`` bytes from ``offset`` on in the file ``location``."""
    entries = {pair.get("key", ""): pair.get("value", "") for pair in tensor["external_data"]}
    location = entries.get("location", "")
    file = _inside(path, location, name)
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(needed)))
    except ValueError as error:
        raise unfit(path, f"{name} has an offset or length that is no integer") from error
    if offset < 0 or length != needed:
        raise unfit(path, f"{name} needs {needed:,} bytes and claims {length:,} at offset {offset:,}")
    try:
        size = file.stat().st_size if file.is_file() else None
    except OSError:  # the name is not valid for a file
        size = None
    if size is None:
        message = f"{path} has {name} in the file {location[:120]!r}, which is not there"
        raise CheckpointError(message, "put it beside the model", rule="onnx-data-missing")
    if size < offset + length:
        message = f"{path} has {name} in the file {location!r}, which is too short"
        raise CheckpointError(message, "get that file again", rule="onnx-data-missing")
    return External(file, offset, length)


def _inside(path: Path, location: str, name: str) -> Path:
    """The file at a location, which must be below the model's folder even after links are resolved.

    In the caches of hubs, the model and its external data are links into one folder, which is allowed.
    """
    steps = PurePosixPath(location).parts
    odd = not steps or set(location) & set("\\:\0") or location.startswith("/") or ".." in steps
    if not odd:
        file = path.parent.joinpath(*steps)
        try:
            real = file.resolve()
            if real.is_relative_to(path.parent.resolve()) or real.parent == path.resolve().parent:
                return file
        except (OSError, RuntimeError):  # circular links, or a name that is too long
            pass
    message = f"{path} has {name} in the file {location[:120]!r}, which does not lie in the model's folder"
    raise UnsafeFileError(message, "other programs would open that file", rule=EXTERNAL_RULE)
