"""The ``config.json`` that timm writes beside weights, and architectures of timm built with options.

The options are part of the architecture's name as JSON, ``timm:resnet10t{"act_layer":"silu"}``, so that the
name defines the whole function. They are untrusted: only plain values of plausible size reach a constructor,
and no option that opens a file or uses the network. Needs no torch.
"""

from __future__ import annotations

import json
from typing import Any

from bcu_cli.errors import ArchitectureError
from bcu_cli.models.configs.config_fields import ConfigFields, abbreviated
from bcu_cli.models.configs.plain_settings import is_plain
from bcu_cli.models.preprocessing import CROP_MODES

LONGEST_NAME = 2_000
"""The form of an architecture with its options."""
IN_CHANS, IMG_SIZE, GLOBAL_POOL = "in_chans", "img_size", "global_pool"
_HINT = "give --arch NAME, or --arch FILE.py:FUNCTION, which goes before what the file says"

TOP_HEEDED = frozenset({"architecture", "global_pool", "model_args", "pretrained_cfg"})
"""Keys outside ``pretrained_cfg`` that define the network."""
TOP_HARMLESS = frozenset(
    {"num_classes", "num_features", "label_names", "label_descriptions", "labels"}
    | {"license", "library_name", "tags", "model_type", "version"}
)
"""Keys that are ignored: numbers that the tensors give, and texts for people."""
CFG_HEEDED = frozenset(
    {"input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "global_pool"}
)
CFG_HARMLESS = frozenset(
    # origin and download of the weights
    {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "tag", "custom_load"}
    # recommendations for other sizes than that of timm's inference
    | {"test_input_size", "min_input_size", "test_crop_pct", "test_pool_size"}
    # given by the tensors, or derived by a constructor
    | {"architecture", "num_classes", "label_offset", "pool_size", "first_conv", "classifier", "num_features"}
    | {"label_names", "label_descriptions", "labels"}
    | {"license", "description", "origin_url", "paper_name", "paper_ids", "notes"}
)
ARGS_HARMLESS = frozenset(
    # given by the tensors, or by the size of the input
    {"num_classes", IN_CHANS}
    # initialisation and placement, before the weights of the file are copied
    | {"pretrained", "pretrained_strict", "pretrained_model_args", "checkpoint_path", "cache_dir"}
    | {"device", "dtype", "scriptable", "exportable", "no_jit"}
    # used in training only
    | {"drop_rate", "drop_path_rate", "drop_block_rate", "grad_checkpointing"}
)
ARGS_REFUSED = frozenset(
    {"features_only", "out_indices", "feature_cls", "feature_cfg", "pruned", "model_cfg", "model_cls"}
    | {"model_name", "variant", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_filter_fn"}
    | {"pretrained_custom_load", "kwargs_filter"}
)
"""Options that build something else than a classifier, or that let timm read other files."""


def split(name: str) -> tuple[str, dict[str, Any]]:
    """Split an architecture's name from its options, which are not checked.

    Raises:
        ValueError: The options are no JSON table.
    """
    base = base_of(name)
    options = json.loads(name.removeprefix(base) or "{}")
    if not isinstance(options, dict):
        raise ValueError("the options are no table")
    return base, options


def base_of(name: str) -> str:
    """An architecture's name without options, which are at its end; a brace in a file name begins none."""
    return name.partition("{")[0] if name.endswith("}") else name


def plain_of(name: str) -> str:
    """An architecture's name without options, library and tag."""
    return base_of(name).rpartition(":")[2].partition(".")[0]


def join(base: str, options: dict[str, Any]) -> str:
    """The canonical name of an architecture with options, without those that do not change the function."""
    kept = {key: value for key, value in options.items() if value is not None and not _is_harmless(key)}
    if not kept:
        return base
    return base + json.dumps(kept, sort_keys=True, separators=(",", ":"))


def checked(base: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check the options for timm's constructor.

    Raises:
        ArchitectureError: An option, which the message names, builds no classifier or has no plausible value.
    """
    for key, value in options.items():
        if key in ARGS_REFUSED:
            raise ArchitectureError(
                f"{base} with {key} {abbreviated(value)} is no classifier that bcu builds", _HINT
            )
        if not key.isidentifier() or not is_plain(key, value):
            raise ArchitectureError(f"{base} with {key[:60]} {abbreviated(value)} cannot be built", _HINT)
    return {key: value for key, value in options.items() if not _is_harmless(key)}


def has_numbers(options: dict[str, Any]) -> bool:
    """Whether an option could set the size of a network."""
    return any(not isinstance(value, str | bool) for value in options.values())


def _is_harmless(key: str) -> bool:
    return key in ARGS_HARMLESS or key.endswith("_drop_rate")


def read(config: dict[str, Any]) -> ConfigFields:
    """Read a ``config.json`` in timm's layout, or in the older one without ``pretrained_cfg``.

    Means and deviations of pixels up to 255, as other libraries write them, are brought to the scale up to 1.
    """
    nested = config.get("pretrained_cfg")
    fields = nested if isinstance(nested, dict) else config
    own = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
    values: dict[str, Any] = {key: fields.get(key, config.get(key)) for key in own}
    if any(_is_of_pixels(values[key]) for key in ("mean", "std")):
        values |= {key: _divided(values[key]) for key in ("mean", "std")}
    refusals = []
    if values["crop_mode"] not in (None, *CROP_MODES):
        refusals.append(f"crop_mode {abbreviated(values['crop_mode'])} is not supported")
        values["crop_mode"] = None
    model_args = config.get("model_args", {})
    options = dict(model_args) if isinstance(model_args, dict) else {"model_args": model_args}
    pool = fields.get(GLOBAL_POOL, config.get(GLOBAL_POOL))
    if pool is not None:
        options.setdefault(GLOBAL_POOL, pool)
    if fields.get("fixed_input_size") is True and _is_size(values["input_size"]):
        options.setdefault(IMG_SIZE, values["input_size"][1:])
    values["input_size"] = _input_size(values["input_size"], options)
    values["arch"] = config.get("architecture")
    if isinstance(values["arch"], str):
        name = join(values["arch"], options | _misplaced(config))
        if name != values["arch"] and len(name) > LONGEST_NAME:
            refusals.append("model_args that are too long")
        else:
            values["arch"] = name
    return ConfigFields(fields=values, refusals=tuple(refusals), complaints=_unknown(config, fields))


def _misplaced(config: dict[str, Any]) -> dict[str, Any]:
    """Options beside ``model_args`` that build no classifier; they are refused as within ``model_args``."""
    return {key: config[key] for key in ARGS_REFUSED - {"pretrained_cfg"} if config.get(key)}


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3


def _input_size(claimed: Any, options: dict[str, Any]) -> Any:
    """C, H, W after the options that change them, combined as timm does."""
    size = options.get(IMG_SIZE)
    sides = [size, size] if isinstance(size, int) else size
    channels = options.get(IN_CHANS)
    if not _is_size(claimed):
        claimed = [3, *sides] if claimed is None and isinstance(sides, list) else claimed
    elif isinstance(sides, list):
        claimed = [claimed[0], *sides]
    return [channels, *claimed[1:]] if channels is not None and _is_size(claimed) else claimed


def _unknown(config: dict[str, Any], fields: dict[str, Any]) -> tuple[str, ...]:
    known = TOP_HEEDED | TOP_HARMLESS | ARGS_REFUSED | CFG_HEEDED
    names = [key for key in config if key not in known | CFG_HARMLESS]
    if fields is not config:
        names += [f"pretrained_cfg.{key}" for key in fields if key not in CFG_HEEDED | CFG_HARMLESS]
    return tuple(f"{name[:60]} is a field that timm does not write, and is not heeded" for name in names)


def _is_of_pixels(values: Any) -> bool:
    """Whether means or deviations are of pixels up to 255; those of images in [0, 1] are 1 at most."""
    return _are_numbers(values) and max(values) > 1


def _divided(values: Any) -> Any:
    """The numbers on the scale up to 1; what is no such list stays, and is complained of later."""
    try:
        return [value / 255 for value in values] if _are_numbers(values) else values
    except OverflowError:
        return values


def _are_numbers(values: Any) -> bool:
    """Whether it is a list of numbers, but for booleans."""
    return isinstance(values, list) and bool(values) and all(type(one) in (int, float) for one in values)
