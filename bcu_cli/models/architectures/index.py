"""The shipped index of architectures, which maps tensor names and shapes to candidates. Needs no torch.

The index holds four hashes of each architecture. The first is over the tensor names. The second is over
names and shapes, without the dimensions that depend on the numbers of classes and input channels.

The third is over the function that the network computes. It exists only for architectures that share names
and shapes with others; equal hashes mean the same function. The fourth is over the shapes alone, in any
order, so that tensors with other names can be looked up too.

``python -m bcu_cli.models.architectures.build_index`` builds the index.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from bcu_cli.models.preprocessing import Preprocessing

INDEX_FILE = "index.json.gz"
SCHEMA_VERSION = 2
#: Number of the smallest name hashes that are stored, to find the nearest architectures.
SKETCH_SIZE = 8

Shapes = Mapping[str, tuple[int, ...]]
#: Tensor name and dimension.
Axis = tuple[str, int]
Shape = tuple[int, ...]
#: Stand in open shapes for the numbers of classes and of input channels.
OPEN_CLASSES, OPEN_CHANNELS = -1, -2
_MOST_CHANNELS = 64
"""Largest number of input channels that is looked up without names."""
_HASH_RANGE = 1 << 64


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One architecture of the index."""

    name: str
    names_hash: str
    shapes_hash: str
    structure: str
    class_axes: tuple[Axis, ...]
    channel_axes: tuple[Axis, ...]
    preprocessing: Preprocessing | None
    sketch: frozenset[str]
    shapes_sum: int
    open_shapes: tuple[Shape, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An architecture whose tensors have the shapes that were looked up, and their names or a renaming.

    ``renamed`` is empty where the names are the architecture's own. Else it maps the file's names to them.
    ``pairing`` says in words how the tensors were paired.
    """

    name: str
    structure: str
    num_classes: int
    in_channels: int
    preprocessing: Preprocessing | None
    renamed: Mapping[str, str] = field(default_factory=dict)
    pairing: str = ""


@dataclass(frozen=True, kw_only=True)
class Index:
    """All indexed architectures, and the versions of the libraries that built them."""

    entries: tuple[Entry, ...]
    versions: Mapping[str, str]


def counted(name: str) -> bool:
    """Whether a tensor is compared: all but BatchNorm's step counters, which old files lack."""
    return not name.endswith("num_batches_tracked")


def hash_names(names: Iterable[str]) -> str:
    """A hash over tensor names, in any order."""
    return digest("\n".join(sorted(filter(counted, names))))


def hash_shapes(shapes: Shapes, class_axes: Iterable[Axis], channel_axes: Iterable[Axis]) -> str:
    """A hash over names and shapes with the given dimensions left open."""
    batch_axes = dict.fromkeys(class_axes, "K") | dict.fromkeys(channel_axes, "C")
    lines = []
    for name in sorted(filter(counted, shapes)):
        sides = (batch_axes.get((name, axis), str(side)) for axis, side in enumerate(shapes[name]))
        lines.append(f"{name} {','.join(sides)}")
    return digest("\n".join(lines))


def compared_shapes(shapes: Shapes) -> list[tuple[str, Shape]]:
    """The tensors that are compared without names, in order: all but scalars, most of which are counters."""
    return [(name, shape) for name, shape in shapes.items() if shape and counted(name)]


def sum_shapes(shapes: Iterable[Shape]) -> int:
    """A hash over shapes in any order; hashes of parts add up to the hash of the whole, modulo 2**64."""
    counts = Counter(shapes)
    return sum(count * int(digest(str(shape)), 16) for shape, count in counts.items()) % _HASH_RANGE


def sketch(names: Iterable[str]) -> frozenset[str]:
    """The smallest few hashes of single tensor names (a bottom-k sketch)."""
    return frozenset(sorted(digest(name)[:6] for name in filter(counted, names))[:SKETCH_SIZE])


def digest(text: str) -> str:
    """The first 64 bits of SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def load_index() -> Index:
    """The shipped index; empty if it has not been built, so that built-in networks are unknown too."""
    source = resources.files("bcu_cli.models.architectures").joinpath(INDEX_FILE)
    if not source.is_file():
        return Index(entries=(), versions={})
    return read_index(source.read_bytes())


def read_index(data: bytes) -> Index:
    """The index in a file's bytes; empty if it is of another version of the format."""
    document = json.loads(gzip.decompress(data))
    if document["schema_version"] != SCHEMA_VERSION:  # while it is being built anew
        return Index(entries=(), versions={})
    axes = [tuple((str(name), int(axis)) for name, axis in group) for group in document["axes"]]
    preprocessings = [_preprocessing(fields) for fields in document["preprocessing"]]
    open_shapes = [tuple(map(tuple, group)) for group in document["open_shapes"]]
    entries = tuple(_entry(row, axes, preprocessings, open_shapes) for row in document["architectures"])
    return Index(entries=entries, versions=document["versions"])


def _preprocessing(fields: list[Any]) -> Preprocessing:
    size, mean, std, crop_pct, interpolation = fields
    return Preprocessing(
        input_size=(size[0], size[1], size[2]),
        mean=tuple(mean),
        std=tuple(std),
        crop_pct=crop_pct,
        interpolation=interpolation,
    )


def _entry(
    row: list[Any],
    axes: list[tuple[Axis, ...]],
    preprocessings: list[Preprocessing],
    open_shapes: list[tuple[Shape, ...]],
) -> Entry:
    name, names_hash, shapes_hash, structure, class_axes, channel_axes, preprocessing, batch_axes = row[:8]
    return Entry(
        name=name,
        names_hash=names_hash,
        shapes_hash=shapes_hash,
        structure=structure,
        class_axes=axes[class_axes],
        channel_axes=axes[channel_axes],
        preprocessing=None if preprocessing < 0 else preprocessings[preprocessing],
        sketch=frozenset(batch_axes[i : i + 6] for i in range(0, len(batch_axes), 6)),
        shapes_sum=int(row[8], 16),
        open_shapes=open_shapes[row[9]],
    )


@cache
def known_names() -> frozenset[str]:
    """The full names of all indexed architectures."""
    return frozenset(entry.name for entry in load_index().entries)


def known_tensor_names(names: Iterable[str]) -> bool:
    """Whether some architecture has exactly these tensor names."""
    return hash_names(names) in _names_hashes()


@cache
def _names_hashes() -> frozenset[str]:
    return frozenset(entry.names_hash for entry in load_index().entries)


@cache
def entry_of(name: str) -> Entry | None:
    """The index's entry of a full name, or None."""
    return next((entry for entry in load_index().entries if entry.name == name), None)


def match(shapes: Shapes) -> tuple[Candidate, ...]:
    """The architectures with exactly these tensors, in the order of preference: built-in, torchvision, timm.

    Args:
        shapes: Shape of each tensor of a whole state dict, by its name.
    """
    names_hash = hash_names(shapes)
    found = []
    for entry in load_index().entries:
        if entry.names_hash == names_hash:
            candidate = match_entry(entry, shapes)
            if candidate is not None:
                found.append(candidate)
    return tuple(sorted(found, key=_preference))


def match_entry(entry: Entry, shapes: Shapes) -> Candidate | None:
    """Match an entry of the index with these tensors; None if they do not fit."""
    if hash_names(shapes) != entry.names_hash:
        return None
    num_classes = _common_side(shapes, entry.class_axes)
    in_channels = _common_side(shapes, entry.channel_axes) if entry.channel_axes else 3
    if num_classes is None or in_channels is None:
        return None
    if hash_shapes(shapes, entry.class_axes, entry.channel_axes) != entry.shapes_hash:
        return None
    return Candidate(
        name=entry.name,
        structure=entry.structure,
        num_classes=num_classes,
        in_channels=in_channels,
        preprocessing=entry.preprocessing,
    )


def match_shapes(shapes: Shapes) -> tuple[tuple[Entry, Candidate], ...]:
    """The architectures whose tensors have these shapes, whatever their names and their order.

    Args:
        shapes: Shape of each tensor of a whole state dict, by its name.
    """
    counts = Counter(shape for _, shape in compared_shapes(shapes))
    total = sum_shapes(counts.elements())
    found = []
    for entry in load_index().entries:
        for num_classes, in_channels in _possible_sides(counts, entry.open_shapes):
            sides = {OPEN_CLASSES: num_classes, OPEN_CHANNELS: in_channels}
            filled = Counter(tuple(sides.get(side, side) for side in shape) for shape in entry.open_shapes)
            rest = (total - sum_shapes(filled.elements())) % _HASH_RANGE
            if filled <= counts and rest == entry.shapes_sum:
                candidate = Candidate(
                    name=entry.name,
                    structure=entry.structure,
                    num_classes=num_classes,
                    in_channels=in_channels,
                    preprocessing=entry.preprocessing,
                )
                found.append((entry, candidate))
    return tuple(sorted(found, key=lambda pair: _preference(pair[1])))


def _possible_sides(counts: Mapping[Shape, int], open_shapes: tuple[Shape, ...]) -> list[tuple[int, int]]:
    """The numbers of classes and input channels with which the open shapes might be among the given ones."""
    classes = _possible_side(counts, open_shapes, OPEN_CLASSES)
    channels = _possible_side(counts, open_shapes, OPEN_CHANNELS)
    return [(k, c) for k in sorted(classes) for c in sorted(channels) if 0 < c <= _MOST_CHANNELS]


def _possible_side(counts: Mapping[Shape, int], open_shapes: tuple[Shape, ...], side: int) -> set[int]:
    """The values of an open side; only 3 where no shape has it."""
    having = [shape for shape in open_shapes if side in shape]
    if not having:
        return {3}
    pattern = max(having, key=len)
    return {
        shape[pattern.index(side)]
        for shape in counts
        if len(shape) == len(pattern)
        and all(wanted in (length, side) or wanted < 0 for wanted, length in zip(pattern, shape, strict=True))
    }


def _common_side(shapes: Shapes, axes: Iterable[Axis]) -> int | None:
    """The common length of the given dimensions; None if they differ."""
    sides = {shapes[name][axis] if axis < len(shapes[name]) else -1 for name, axis in axes}
    side = sides.pop() if len(sides) == 1 else -1
    return side if side > 0 else None


def _preference(candidate: Candidate) -> tuple[int, int, str]:
    library = candidate.name.rpartition(":")[0]
    return (("", "torchvision", "timm").index(library), len(candidate.name), candidate.name)


def nearest(shapes: Shapes, limit: int = 4) -> tuple[tuple[str, ...], bool]:
    """The architectures whose tensors are most similar to tensors that fit none.

    Returns:
        Their full names, and whether they have exactly the same tensor names, in other shapes. If not, they
        share the most names, and at least half, as estimated from a sample.
    """
    names_hash = hash_names(shapes)
    entries = load_index().entries
    same = [entry.name for entry in entries if entry.names_hash == names_hash]
    if same:
        return tuple(sorted(same, key=len)[:limit]), True
    own = sketch(shapes)
    scored = []
    for entry in entries:
        union = frozenset(sorted(own | entry.sketch)[:SKETCH_SIZE])
        scored.append((len(union & own & entry.sketch) / max(1, len(union)), entry.name))
    scored = [pair for pair in scored if pair[0] >= 0.5]
    scored.sort(key=lambda pair: (-pair[0], len(pair[1]), pair[1]))
    return tuple(name for _, name in scored[:limit]), False
