"""Reading and writing safetensors files: a strict header parser without torch, and a deterministic writer.

The ``safetensors`` library is not used: its order of the metadata changes from run to run, and it cannot open
files whose names are not UTF-8.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from bcu_cli.errors import CheckpointError

from .archive import damaged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 64  # torch's limit
_DTYPES = {  # name in the file: (name in torch, bytes per element)
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}
_NOT_FINITE = {  # name in the file: (bit mask, value of the masked bits in infinity and NaN)
    "F8_E4M3": (0x7F, 0x7F),
    "F8_E5M2": (0x7C, 0x7C),
    "F8_E4M3FNUZ": (0xFF, 0x80),
    "F8_E5M2FNUZ": (0xFF, 0x80),
    "F16": (0x7C00, 0x7C00),
    "BF16": (0x7F80, 0x7F80),
    "F32": (0x7F80_0000, 0x7F80_0000),
    "F64": (0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0000),
}
_CHUNK_BYTES = 2**23
_NAMES = {f"torch.{dtype}": name for name, (dtype, _) in _DTYPES.items()}


class NoSuchDtypeError(ValueError):
    """The dtype of a tensor does not exist in safetensors."""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor as the header declares it; ``start`` and ``stop`` are byte offsets after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """A valid header: the tensors in its order, the metadata, and the offset of the data in bytes."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; this reads no tensor data and needs no torch.

    Raises:
        CheckpointError: The header violates the format: by its size, its JSON, a duplicate name, an unknown
            dtype, or tensors that overlap, leave gaps or do not fill the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
            raise damaged(
                path,
                f"its header of {length:,} bytes does not fit into the file of {size:,}",
                "safetensors-header",
            )
        text = file.read(length)
    entries = _parse_json(path, text)
    metadata = _check_metadata(path, entries.pop("__metadata__", {}))
    tensors = {name: _check_tensor(path, name, entry) for name, entry in entries.items()}
    _check_layout(path, tensors, size - 8 - length)
    return Header(tensors=tensors, metadata=metadata, data_start=8 + length)


def torch_dtype(info: TensorInfo) -> str:
    """The name of a tensor's type in torch: ``float32`` for ``F32``."""
    return _DTYPES[info.dtype][0]


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors, on the CPU and in the header's order, and the metadata.

    Raises:
        CheckpointError: The file is damaged.
    """
    header = read_header(path)
    tensors: dict[str, torch.Tensor] = {}
    with path.open("rb") as file:
        for name, info in header.tensors.items():
            file.seek(header.data_start + info.start)
            data = bytearray(info.stop - info.start)
            if file.readinto(data) != len(data):  # the file has become shorter since its header was checked
                raise _cut_short(path, name)
            tensors[name] = _tensor(data, info)
    return tensors, header.metadata


def _tensor(data: bytearray, info: TensorInfo) -> torch.Tensor:
    import torch

    dtype = getattr(torch, torch_dtype(info))
    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(info.shape)


def _cut_short(path: Path, name: str) -> CheckpointError:
    return damaged(path, f"the data of {name!r} cannot be read completely")


def count_not_finite(path: Path) -> dict[str, int]:
    """Count the NaN and infinite values of each tensor that has any; this needs no torch.

    Raises:
        CheckpointError: The file is damaged.
    """
    header = read_header(path)
    counts: dict[str, int] = {}
    with path.open("rb") as file:
        for name, info in header.tensors.items():
            if info.dtype in _NOT_FINITE:
                file.seek(header.data_start + info.start)
                if (count := _count(file, info)) is None:
                    raise _cut_short(path, name)
                counts[name] = count
    return {name: count for name, count in counts.items() if count}


def _count(file: BinaryIO, info: TensorInfo) -> int | None:
    import numpy as np

    bits, wanted = _NOT_FINITE[info.dtype]
    unsigned = np.dtype(f"<u{_DTYPES[info.dtype][1]}")
    count, left = 0, info.stop - info.start
    while left:
        data = file.read(min(left, _CHUNK_BYTES))
        if len(data) != min(left, _CHUNK_BYTES):  # the file has become shorter
            return None
        values = np.frombuffer(data, unsigned)
        count += int(np.count_nonzero((values & unsigned.type(bits)) == wanted))
        left -= len(data)
    return count


def dump(file: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata deterministically: equal tensors give equal bytes.

    Names keep their order in the header. The data are sorted by element size, largest first, so that each
    tensor is aligned. Tensors that share memory are written separately.

    Raises:
        NoSuchDtypeError: The dtype of a tensor does not exist in safetensors.
    """
    import torch

    by_size = sorted(tensors, key=lambda name: -tensors[name].element_size())
    offsets: dict[str, list[int]] = {}
    stop = 0
    for name in by_size:
        start, stop = stop, stop + tensors[name].numel() * tensors[name].element_size()
        offsets[name] = [start, stop]
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for name, tensor in tensors.items():
        if str(tensor.dtype) not in _NAMES:
            raise NoSuchDtypeError(f"safetensors has no dtype for {name!r} ({tensor.dtype})")
        dtype = _NAMES[str(tensor.dtype)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets[name]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in by_size:
        if tensors[name].numel():
            flat = tensors[name].detach().cpu().contiguous().flatten()
            file.write(flat.view(torch.uint8).numpy().data)


def _parse_json(path: Path, text: bytes) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            twin = Counter(name for name, _ in pairs).most_common(1)[0][0]
            message = f"{path} names {twin!r} twice in its header"
            hint = "different readers see different tensors in such a file"
            raise CheckpointError(message, hint, rule="safetensors-duplicate-key")
        return dict(pairs)

    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not begin with {")
        return dict(json.loads(text.decode("utf-8"), object_pairs_hook=without_duplicates))
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header is not valid JSON", "safetensors-header") from error


def _check_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if metadata is None:  # some writers write null for empty metadata
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(path, "its __metadata__ is not a table of texts", "safetensors-header")
    return metadata


def _check_tensor(path: Path, name: str, entry: Any) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        why = f"the header's entry for {name!r} is not made of dtype, shape and data_offsets"
        raise damaged(path, why, "safetensors-header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        known = "bcu knows " + ", ".join(_DTYPES)
        raise CheckpointError(
            f"{path}: {name!r} has the unknown dtype {dtype!r}", known, rule="safetensors-header"
        )
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(shape) <= MAX_DIMENSIONS and len(offsets) == 2):
        raise damaged(
            path, f"the shape or the offsets of {name!r} are not whole numbers", "safetensors-header"
        )
    count = offsets[1] - offsets[0]
    if count != math.prod(shape) * _DTYPES[dtype][1]:
        why = f"{name!r} has {count:,} bytes, which is not what its shape needs"
        raise damaged(path, why, "safetensors-layout")
    return TensorInfo(dtype=dtype, shape=tuple(shape), start=offsets[0], stop=offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_bytes: int) -> None:
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != position:
            fault = "overlaps the one before it" if info.start < position else "leaves a gap before it"
            raise damaged(path, f"the data of {name!r} {fault}", "safetensors-layout")
        position = info.stop
    if position > data_bytes:
        raise damaged(
            path,
            f"its tensors need {position:,} bytes of data and {data_bytes:,} are there",
            "safetensors-layout",
        )
    if position < data_bytes:
        raise damaged(path, f"{data_bytes - position:,} bytes follow the last tensor", "safetensors-layout")
