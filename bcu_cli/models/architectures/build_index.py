"""Build the index of architectures: ``python -m bcu_cli.models.architectures.build_index [FILE]``.

Every built-in, timm and torchvision classifier is built on the meta device, which allocates nothing. The
numbers of classes and input channels are primes that occur nowhere else, so that dimensions that depend on
them can be recognised. Architectures that share names and shapes are traced
(:mod:`bcu_cli.models.architectures.structure`).

Entries of timm and torchvision are taken from the file that is there, if it was made with the installed
versions. So a new built-in network takes a minute; without that file it is a quarter of an hour.
"""

from __future__ import annotations

import collections
import gzip
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bcu_cli.errors import BcuError
from bcu_cli.models.architectures.index import (
    INDEX_FILE,
    OPEN_CHANNELS,
    OPEN_CLASSES,
    SCHEMA_VERSION,
    Axis,
    Entry,
    Index,
    Shape,
    Shapes,
    compared_shapes,
    hash_names,
    hash_shapes,
    read_index,
    sketch,
    sum_shapes,
)
from bcu_cli.models.architectures.structure import UntraceableError, function_hash
from bcu_cli.models.networks.builtin import BUILTIN_ARCHITECTURES
from bcu_cli.models.preprocessing import INTERPOLATIONS, Preprocessing
from bcu_cli.models.registry import TIMM, TORCHVISION, blueprint, build, import_library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Placeholders for the numbers of classes and channels: primes that divide the width of no layer.
CLASSES = 7919
CHANNELS = 7907
#: Larger networks are not built with real constants, and so count as different from all others.
LARGEST_TRACED = 150_000_000
#: torchvision's networks whose pretrained weights expect that they change the normalisation of their input
#: from ImageNet's to this mean and deviation (``transform_input``). Built without weights, they do not.
TRANSFORMING = {"googlenet": 0.5, "inception_v3": 0.5}


class Row(NamedTuple):
    """The index entry of one architecture, before it is packed."""

    name: str
    names_hash: str
    shapes_hash: str
    class_axes: tuple[Axis, ...]
    channel_axes: tuple[Axis, ...]
    preprocessing: Preprocessing | None
    sketch: str
    parameters: int
    shapes_sum: int
    open_shapes: tuple[Shape, ...]


def all_names() -> list[str]:
    """The full names of all architectures that could be indexed."""
    timm = import_library("timm")
    models = import_library("torchvision.models")
    return [
        *sorted(BUILTIN_ARCHITECTURES),
        *(TORCHVISION + name for name in sorted(models.list_models(module=models))),
        *(TIMM + name for name in sorted(timm.list_models())),
    ]


def describe(name: str) -> Row:
    """Build ``name`` on the meta device and describe its tensors.

    Raises:
        BcuError: The architecture cannot be built, or is no classifier.
    """
    shapes = _shapes(name, CHANNELS)
    if shapes is None:
        shapes = _shapes(name, 3)
    if shapes is None:
        raise BcuError(f"{name} cannot be built on the meta device")
    class_axes = _axes(shapes, CLASSES)
    if not class_axes:
        raise BcuError(f"{name} has no tensor that depends on the number of classes")
    channel_axes = _axes(shapes, CHANNELS)
    sides = {CLASSES: OPEN_CLASSES, CHANNELS: OPEN_CHANNELS}
    compared = [tuple(sides.get(side, side) for side in shape) for _, shape in compared_shapes(shapes)]
    return Row(
        name=name,
        names_hash=hash_names(shapes),
        shapes_hash=hash_shapes(shapes, class_axes, channel_axes),
        class_axes=class_axes,
        channel_axes=channel_axes,
        preprocessing=default_preprocessing(name),
        sketch="".join(sorted(sketch(shapes))),
        parameters=sum(_product(shape) for shape in shapes.values()),
        shapes_sum=sum_shapes(shape for shape in compared if min(shape) >= 0),
        open_shapes=tuple(sorted(shape for shape in compared if min(shape) < 0)),
    )


def _shapes(name: str, channels: int) -> Shapes | None:
    """The shapes of all tensors, or None if the placeholder numbers cannot be recognised in them."""
    try:
        network = blueprint(
            name, num_classes=CLASSES, input_size=None if channels == 3 else (channels, *_side(name))
        )
    except BcuError:
        return None
    shapes = {key: tuple(t.shape) for key, t in network.state_dict().items()}
    sides = {side for shape in shapes.values() for side in shape}
    if any(side > number and side % number == 0 for side in sides for number in (CLASSES, CHANNELS)):
        return None
    return shapes


def _side(name: str) -> tuple[int, int]:
    preprocessing = default_preprocessing(name)
    return (224, 224) if preprocessing is None else preprocessing.input_size[1:]


def _axes(shapes: Shapes, side: int) -> tuple[Axis, ...]:
    return tuple(
        (name, i) for name, shape in sorted(shapes.items()) for i, s in enumerate(shape) if s == side
    )


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def default_preprocessing(name: str) -> Preprocessing | None:
    """The preprocessing of the library's pretrained weights for ``name``; None if it gives none."""
    try:
        if name.startswith(TIMM):
            return _timm_preprocessing(name.removeprefix(TIMM))
        if name.startswith(TORCHVISION):
            return _torchvision_preprocessing(name.removeprefix(TORCHVISION))
    except (ValueError, AttributeError, TypeError):
        return None
    return None


def _timm_preprocessing(name: str) -> Preprocessing | None:
    config = import_library("timm").get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or config.mean is None or config.input_size is None:
        return None
    return Preprocessing(
        input_size=tuple(config.input_size),
        mean=tuple(config.mean),
        std=tuple(config.std),
        crop_pct=min(config.crop_pct or 1.0, 1.0),
        interpolation=config.interpolation if config.interpolation in INTERPOLATIONS else "bilinear",
    )


def _torchvision_preprocessing(name: str) -> Preprocessing:
    weights = import_library("torchvision.models").get_model_weights(name).DEFAULT
    preset = weights.transforms()
    side, resized = preset.crop_size[0], preset.resize_size[0]
    own = (TRANSFORMING[name],) * 3 if name in TRANSFORMING else None
    return Preprocessing(
        input_size=(3, side, side),
        mean=own or tuple(preset.mean),
        std=own or tuple(preset.std),
        crop_pct=round(min(side / resized, 1.0), 4),
        interpolation=preset.interpolation.value,
    )


def trace(row: Row) -> str:
    """The hash of the function that an architecture computes, or its name if it cannot be traced."""
    sizes = {(3, 224, 224), (3, *_side(row.name))}
    for size in sorted(sizes, key=lambda size: size != (3, 224, 224)):
        for device in ("meta", "cpu"):
            if device == "cpu" and row.parameters > LARGEST_TRACED:
                continue
            try:
                with torch.device(device):
                    network = build(row.name, num_classes=7)
                return function_hash(network, size)
            except (UntraceableError, BcuError) as error:
                _talk(f"  {row.name} at {size[1]} on {device}: {error}")
    return row.name


def pack(rows: list[Row], structures: dict[str, str]) -> bytes:
    """Pack the index as compressed JSON that stores repeated parts once; the bytes are reproducible."""
    axes: dict[tuple[Axis, ...], int] = {}
    preprocessings: dict[str, int] = {}
    open_shapes: dict[tuple[Shape, ...], int] = {}
    packed: list[list[Any]] = [
        [
            row.name,
            row.names_hash,
            row.shapes_hash,
            structures.get(row.name, ""),
            axes.setdefault(row.class_axes, len(axes)),
            axes.setdefault(row.channel_axes, len(axes)),
            _intern(preprocessings, row.preprocessing),
            row.sketch,
            f"{row.shapes_sum:x}",
            open_shapes.setdefault(row.open_shapes, len(open_shapes)),
        ]
        for row in rows
    ]
    document = {
        "schema_version": SCHEMA_VERSION,
        "versions": _versions(),
        "axes": list(axes),
        "open_shapes": list(open_shapes),
        "preprocessing": [json.loads(text) for text in preprocessings],
        "architectures": packed,
    }
    return gzip.compress(json.dumps(document, separators=(",", ":")).encode(), 9, mtime=0)


def _intern(known: dict[str, int], preprocessing: Preprocessing | None) -> int:
    if preprocessing is None:
        return -1
    p = preprocessing
    return known.setdefault(
        json.dumps([p.input_size, p.mean, p.std, p.crop_pct, p.interpolation]), len(known)
    )


def ambiguous(rows: list[Row]) -> list[Row]:
    """The rows that might share names and shapes with another one.

    Only names are compared. Hashes of shapes leave dimensions open, and networks that take any number of
    channels leave others open than networks that take three.
    """
    counts = collections.Counter(row.names_hash for row in rows)
    return [row for row in rows if counts[row.names_hash] > 1]


def build_index(names: list[str], progress: Callable[[str], None], known: Sequence[Entry] = ()) -> bytes:
    """Describe and trace architectures; those that cannot be described are reported and skipped.

    Args:
        names: Full names of the architectures.
        progress: Called with a line of text.
        known: Entries that are taken as they are.
    """
    kept = {entry.name: entry for entry in known}
    rows = []
    for i, name in enumerate(names):
        try:
            rows.append(_row(kept[name]) if name in kept else describe(name))
        except BcuError as error:
            progress(f"left out: {error.message}")
        if i % 100 == 0:
            progress(f"{i} of {len(names)} built")
    shared = ambiguous(rows)
    structures = {row.name: kept[row.name].structure if row.name in kept else "" for row in shared}
    untraced = [row for row in shared if not structures[row.name]]
    progress(f"{len(shared)} share their tensor names with others; tracing {len(untraced)} of them")
    return pack(rows, structures | {row.name: trace(row) for row in untraced})


def _row(entry: Entry) -> Row:
    """The row of an entry that was read. Its number of parameters is not known and not needed any more."""
    return Row(
        name=entry.name,
        names_hash=entry.names_hash,
        shapes_hash=entry.shapes_hash,
        class_axes=entry.class_axes,
        channel_axes=entry.channel_axes,
        preprocessing=entry.preprocessing,
        sketch="".join(sorted(entry.sketch)),
        parameters=LARGEST_TRACED,
        shapes_sum=entry.shapes_sum,
        open_shapes=entry.open_shapes,
    )


def known_entries(index: Index) -> list[Entry]:
    """The entries of an index that need not be built again: those of the installed timm and torchvision."""
    if index.versions != _versions():
        return []
    return [entry for entry in index.entries if entry.name not in BUILTIN_ARCHITECTURES]


def _versions() -> dict[str, str]:
    return {name: import_library(name).__version__ for name in ("timm", "torch", "torchvision")}


def _talk(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """Write the index to the file named on the command line, or into the package."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name(INDEX_FILE)
    torch.set_num_threads(1)
    known = known_entries(read_index(target.read_bytes())) if target.is_file() else []
    data = build_index(all_names(), _talk, known)
    target.write_bytes(data)
    _talk(f"{target}: {len(data)} bytes")


if __name__ == "__main__":
    main()
