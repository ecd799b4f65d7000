"""Claims of a model file, or of a ``config.json`` beside it, about its architecture and preprocessing.

Claims are untrusted: whoever made the file wrote them. An architecture is only a name to look up, and is
used only if the tensors fit it. Numbers are checked for range. Nothing is run. Needs no torch.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from bcu_cli.models.configs import timm_config, transformers_config, transformers_processor
from bcu_cli.models.configs.config_fields import ConfigFields, class_names_in, config_classes
from bcu_cli.models.preprocessing import (
    check_channel_order,
    check_crop,
    check_crop_mode,
    check_interpolation,
    check_normalisation,
    check_size,
)
from bcu_cli.models.registry import is_user_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

#: Keys in bcu's own metadata; each value is JSON.
ARCH, NUM_CLASSES, INPUT_SIZE, MEAN, STD, CROP_PCT, CROP_MODE, INTERPOLATION, CHANNEL_ORDER, CLASSES = (
    f"bcu.{key}"
    for key in (
        *("arch", "num_classes", "input_size", "mean", "std", "crop_pct", "crop_mode"),
        *("interpolation", "channel_order", "classes"),
    )
)
_LARGEST_SIDE, _MOST_CHANNELS = 2048, 64
"""Largest input size that a file may claim; the user may give a larger one."""
_NAME = re.compile(r"[A-Za-z0-9_.:+-]{1,200}")
_OTHER_PROBLEMS = {
    "multi_label_classification": "an image may be of several classes, and bcu needs one for each image",
    "regression": "its outputs are numbers, not classes",
}
"""Tasks of transformers that are not done by a classifier, and why bcu refuses them."""
BCU_SOURCE = "metadata"
"""Source of a claim that bcu wrote."""
#: Keys under which training scripts store the name of an architecture.
_ARCH_KEYS = ("arch", "architecture", "model_name")
#: Tables in which they store their own options; there ``model`` is the name of an architecture, too.
_OPTION_TABLES = ("args", "config", "hparams", "hyper_parameters", "opt")

#: Keys under which they, and exporters, store the names of the classes.
CLASS_NAMES = "class_names"
_CLASS_KEYS = (CLASS_NAMES, "classes", "class_to_idx", "idx_to_class", "id2label", "label_names", "names")
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_NUMBERED = re.compile(rf"(\d{{1,6}}): ({_QUOTED})(?:, |\}}$)")
"""An entry of a table of texts by numbers as Python writes it, ``{0: 'cat', 1: 'dog'}``."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The claims of one source; a field that the source does not give is None.

    The fields of the preprocessing are those of :class:`~bcu_cli.models.Preprocessing`.

    Args:
        source: Name of the source, in words.
        arch: Name of the architecture, as the source spells it.
        input_size: Channels, height and width of the input.
        mean: Mean per channel.
        std: Standard deviation per channel.
        crop_pct: Share kept by the centre crop.
        crop_mode: Mode of the crop.
        interpolation: Filter of the resizing.
        channel_order: Order of the channels.
        classes: Names of the classes in the order of the outputs; empty where there is not one for each.
        refusals: Fields that ask for preprocessing that bcu cannot do, in words.
        complaints: Fields that cannot be used, in words.
    """

    source: str
    arch: str | None = None
    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    channel_order: str | None = None
    classes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()


def read_claims(path: Path, metadata: Mapping[str, str], beside: Mapping[str, Any]) -> tuple[Claim, ...]:
    """Read all claims about a model file, the most trusted source first.

    Args:
        path: The model file, in whose folder a ``config.json`` may be.
        metadata: The metadata of the file.
        beside: Plain values beside the weights in a pickle.
    """
    claims = [_bcu_claim(metadata)]
    claims += [
        Claim(source=f"{source} {key!r}", arch=value)
        for source, names in (("metadata", _names(metadata)), ("entry", _names(beside)))
        for key, value in names.items()
        if _is_name(value)
    ]
    for source, table in (("metadata", metadata), ("entry", beside)):
        for key, names in _classes(table).items():
            claims.append(Claim(source=f"{source} {key!r}", classes=names))
    claims.append(_config_claim(path.parent / "config.json"))
    return tuple(claim for claim in claims if claim != Claim(source=claim.source))


def _names(table: Mapping[str, Any]) -> dict[str, str]:
    """The names of architectures in a table and in the tables of options in it, by their paths."""
    found = {}
    for path, value in table.items():
        key = path.rpartition("/")[2]
        if key in _ARCH_KEYS and isinstance(value, str):
            found[path] = value
        elif key in _OPTION_TABLES and isinstance(value, dict):
            for name in (*_ARCH_KEYS, "model"):
                inner = dict.get(value, name)
                if isinstance(inner, str):
                    found[f"{path}/{name}"] = inner
    return found


def _classes(table: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of classes in a table and in the tables of options in it, by their paths."""
    found: dict[str, tuple[str, ...]] = {}
    for path, value in table.items():
        key = path.rpartition("/")[2]
        inner = [(path, value)] if key in _CLASS_KEYS else []
        if key in _OPTION_TABLES and isinstance(value, dict):
            inner = [(f"{path}/{name}", dict.get(value, name)) for name in _CLASS_KEYS]
        found |= {where: class_names_in(_parsed_table(each)) for where, each in inner}
    return {where: names for where, names in found.items() if names}


def _parsed_table(value: Any) -> Any:
    """A text that holds JSON, or a table of texts as Python writes it, as what it holds; else the value."""
    if not isinstance(value, str):
        return value
    table, place = {}, 1
    while value.startswith("{") and (entry := _NUMBERED.match(value, place)):
        table[int(entry[1])] = _unquoted(entry[2])
        place = entry.end()
    return table if table and place == len(value) else _parse(value)


def _unquoted(text: str) -> str:
    """The text that a literal of Python stands for; empty where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return ""


def _bcu_claim(metadata: Mapping[str, str]) -> Claim:
    fields = {key: _parse(text) for key, text in metadata.items() if key.startswith("bcu.")}
    return _checked(BCU_SOURCE, **{name: fields.get(f"bcu.{name}") for name in _CONVERTERS})


def _config_claim(path: Path) -> Claim:
    """The claim of a ``config.json`` of timm or transformers; empty if there is none of that layout."""
    try:
        config = _read_json(path)
    except (OSError, ValueError, RecursionError):
        return Claim(source=path.name, complaints=("is not readable JSON",))
    if config is None:
        return Claim(source=path.name)
    try:
        if transformers_config.is_image_classifier(config):
            return _transformers_claim(path, config)
        if transformers_config.is_foreign(config):
            return Claim(source=path.name, complaints=(transformers_config.named(config),))
        return timm_claim(path.name, config)
    except RecursionError:  # serialising a nested value takes more of the stack than parsing it
        return Claim(source=path.name, refusals=("tables within tables beyond all measure",))


def timm_claim(source: str, config: dict[str, Any]) -> Claim:
    """The claim of a table in the layout of timm's ``config.json``.

    Args:
        source: Name of the source, in words.
        config: The table.
    """
    parsed = timm_config.read(config)
    claim = _with_problems(_checked(source, **parsed.fields), parsed)
    return replace(claim, classes=config_classes(config))


def _with_problems(claim: Claim, parsed: ConfigFields) -> Claim:
    return replace(claim, refusals=parsed.refusals, complaints=claim.complaints + parsed.complaints)


def _read_json(path: Path) -> dict[str, Any] | None:
    """The table in a JSON file of limited size; None where there is none."""
    if not path.is_file() or path.stat().st_size > transformers_config.LARGEST_CONFIG:
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else None


def _transformers_claim(path: Path, config: dict[str, Any]) -> Claim:
    """The claim of transformers' ``config.json`` and ``preprocessor_config.json``."""
    arch = f"{transformers_config.PREFIX}{path}"
    beside = path.with_name("preprocessor_config.json")
    try:
        fields = _read_json(beside)
    except (OSError, ValueError, RecursionError):
        return Claim(source=path.name, arch=arch, complaints=(f"{beside.name} is not readable JSON",))
    vision = config.get(transformers_config.VISION)
    table = vision if isinstance(vision, dict) else config
    channels = table.get("num_channels", 3)
    parsed = ConfigFields()
    if fields is not None and type(channels) is int and 1 <= channels <= _MOST_CHANNELS:
        parsed = transformers_processor.read(fields, str(config["model_type"]), channels)
    size = table.get("image_size")
    sides = size if isinstance(size, list) else [size, size]
    usual = {} if size is None or parsed.refusals else {"input_size": [channels, *sides]}
    claim = _with_problems(_checked(path.name, **(usual | parsed.fields)), parsed)
    problem = config.get("problem_type")
    if problem in _OTHER_PROBLEMS:
        refusal = f"problem_type {problem}: {_OTHER_PROBLEMS[problem]}"
        claim = replace(claim, refusals=(refusal, *claim.refusals))
    return replace(claim, arch=arch, classes=config_classes(config))


def _is_name(arch: str) -> bool:
    """Whether a claimed architecture is a name to look up; a path is only reported, never opened."""
    is_plain = (
        _NAME.fullmatch(timm_config.base_of(arch)) is not None and len(arch) <= timm_config.LONGEST_NAME
    )
    return (is_plain and not arch.startswith(transformers_config.PREFIX)) or is_user_file(arch)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _checked(source: str, **fields: Any) -> Claim:
    """The claim of the valid fields; the invalid ones become complaints."""
    complaints: list[str] = []
    valid: dict[str, Any] = {}
    for name, convert in _CONVERTERS.items():
        value = fields.get(name)
        if value is None:
            continue
        try:
            valid[name] = convert(value)
        except (ValueError, TypeError, OverflowError):
            complaints.append(f"{name} {str(value)[:60]!r} makes no sense")
    return Claim(source=source, **valid, complaints=tuple(complaints))


def _arch(value: Any) -> str:
    if not _is_name(_text(value)):
        raise ValueError
    return _text(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _size(value: Any) -> tuple[int, int, int]:
    channels, height, width = value
    if not all(type(side) is int for side in value):
        raise TypeError
    check_size((channels, height, width))
    if channels > _MOST_CHANNELS or max(height, width) > _LARGEST_SIDE:
        raise ValueError
    return channels, height, width


def _numbers(value: Any) -> tuple[float, ...]:
    """One number for each channel."""
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= _MOST_CHANNELS:
        raise TypeError
    return tuple(_number(one) for one in value)


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError
    return float(value)


def _passing(convert: Callable[[Any], T], check: Callable[[T], object]) -> Callable[[Any], T]:
    """A conversion whose result must pass a check, which raises an error if it does not."""

    def checked(value: Any) -> T:
        converted = convert(value)
        check(converted)
        return converted

    return checked


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "arch": _arch,
    "input_size": _size,
    "mean": _passing(_numbers, lambda mean: check_normalisation(mean, ())),
    "std": _passing(_numbers, lambda std: check_normalisation((), std)),
    "crop_pct": _passing(_number, check_crop),
    "crop_mode": _passing(_text, check_crop_mode),
    "interpolation": _passing(_text, check_interpolation),
    "channel_order": _passing(_text, check_channel_order),
}
"""Conversions of the fields of a claim; an error means that the value makes no sense."""
