"""Reads the ``preprocessor_config.json`` of transformers' image processors. Needs no torch.

The processors of the classifiers that bcu builds share the fields for resizing, cropping, scaling and
normalising; some interpret them differently. A field that asks for something that bcu cannot do is refused
by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bcu_cli.models.configs.config_fields import ConfigFields, abbreviated
from bcu_cli.models.preprocessing import BGR, CENTER, SQUASH
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

HEEDED = frozenset(
    {"image_processor_type", "feature_extractor_type", "do_resize", "size", "default_to_square", "resample"}
    | {"do_center_crop", "crop_size", "crop_pct", "do_pad", "do_rescale", "rescale_factor", "rescale_offset"}
    | {"do_normalize", "image_mean", "image_std", "include_top", "do_flip_channel_order"}
)
HARMLESS = frozenset(
    # bcu always decodes to three channels, and does not pad where do_pad is false
    {"do_convert_rgb", "pad_size"}
    # segmentation maps, arrays in memory, device and data type of a batch
    | {"do_reduce_labels", "reduce_labels", "data_format", "input_data_format", "device", "return_tensors"}
    | {"disable_grouping", "image_seq_length", "processor_class", "_processor_class", "auto_map"}
    | {"_valid_processor_keys", "model_input_names"}
)
_USUAL = {
    "ConvNext": "convnext convnextv2 cvt regnet resnet",
    "Bit": "bit dinov2 dinov2_with_registers focalnet hiera",
    "CLIP": "clip metaclip_2",
    "Siglip": "siglip",
    "ViT": "ijepa swiftformer swin swinv2 vit vit_msn",
    "MobileViT": "mobilevit mobilevitv2",
    "Pvt": "pvt pvt_v2",
    "Beit": "beit data2vec-vision",
    "DeiT": "deit",
    "EfficientNet": "efficientnet",
    "Levit": "levit",
    "MobileNetV1": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
    "PoolFormer": "poolformer",
    "Segformer": "segformer",
}
PROCESSORS = {kind: name for name, kinds in _USUAL.items() for kind in kinds.split()}
"""The processor that transformers uses for each type of model if the file names none."""
_SHORTEST_EDGE = frozenset(
    {"Bit", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "Siglip"}
)
"""Processors for which a single number as size is the shorter side."""
_WITH_SHARE = frozenset({"ConvNext", "PoolFormer"})
"""Processors that use ``crop_pct``."""
_BILINEAR = frozenset({"MobileNetV1", "MobileNetV2", "Segformer", "ViT"})
"""Processors with a bilinear filter by default; the others have a bicubic one."""
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters by number."""
_SQUASHED_FROM = 384
"""Size in pixels from which ConvNext's processor does not crop."""
_MOST_SIDE = 1 << 16


class _RefusedError(Exception):
    """A field asks for something that bcu cannot do; the message names it and gives the reason."""


@dataclass
class _Reader:
    """The reader of one ``preprocessor_config.json``."""

    fields: dict[str, Any]
    kind: str
    channels: int
    refusals: list[str] = field(default_factory=list)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean field; null counts as missing."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _RefusedError(f"{name} {abbreviated(value)} is neither true nor false")
        return value

    def flag_of(self, name: str, *kinds: str, default: bool) -> bool:
        """A boolean field of certain kinds of processor; refused if it is true on any other."""
        if self.kind in kinds:
            return self.flag(name, default)
        if self.flag(name, False):
            raise _RefusedError(f"{name} true is nothing that the {self.kind} image processor does")
        return False

    def number(self, name: str, default: float) -> float:
        """A field with a number greater than 0."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise _RefusedError(f"{name} {abbreviated(value)} is no number greater than 0")
        return float(value)

    def sides(self, name: str, *, square: bool) -> dict[str, int] | None:
        """A size field in the terms of transformers: height and width, or the shortest edge."""
        value = self.fields.get(name)
        if value is None:
            return None
        if type(value) is int:
            value = {"height": value, "width": value} if square else {"shortest_edge": value}
        elif isinstance(value, list) and len(value) == 2:
            value = {"height": value[0], "width": value[1]}
        known = ({"height", "width"}, {"shortest_edge"})
        if not isinstance(value, dict) or set(value) not in known:
            raise _RefusedError(
                f"{name} {abbreviated(value)} is neither height and width nor a shortest edge"
            )
        if not all(type(side) is int and 1 <= side <= _MOST_SIDE for side in value.values()):
            raise _RefusedError(f"{name} {abbreviated(value)} is no size of an image")
        return value

    def geometry(self) -> dict[str, Any]:
        """Read input size, crop share and crop mode."""
        if self.flag("do_pad", False):
            raise _RefusedError("do_pad true pads images, which bcu does not")
        if not self.flag("do_resize", True):
            raise _RefusedError("do_resize false feeds each image in its own size, which bcu does not")
        square = self.flag("default_to_square", self.kind not in _SHORTEST_EDGE)
        size = self.sides("size", square=square)
        if size is None:
            return {}
        resized, cut, mode = self._resized(size)
        if self.flag_of("do_center_crop", *(set(_USUAL) - {"Segformer", "Siglip"}), default=False):
            crop = self.sides("crop_size", square=True)
            if crop is None or "height" not in crop:
                raise _RefusedError("do_center_crop true does not go with crop_size as it is")
            cut = (crop["height"], crop["width"])
        if cut is None:
            raise _RefusedError("size shortest_edge without do_center_crop keeps each image's own shape")
        share = cut[0] / resized[0]
        if share > 1 or cut[1] > resized[1]:
            raise _RefusedError(f"crop_size {cut[0]}x{cut[1]} is larger than the resized image and pads it")
        if not math.isclose(share, cut[1] / resized[1]):
            raise _RefusedError(f"crop_size {cut[0]}x{cut[1]} is no equal share of both sides")
        return {"input_size": [self.channels, *cut], "crop_pct": share, "crop_mode": mode}

    def _resized(self, size: dict[str, int]) -> tuple[tuple[int, int], tuple[int, int] | None, str]:
        """The size after resizing, the crop if the processor makes one here, and the crop mode."""
        if "height" in size and self.kind != "PoolFormer":
            sides = (size["height"], size["width"])
            return sides, sides, SQUASH
        if "height" in size and size["height"] != size["width"]:
            raise _RefusedError("size of a PoolFormer is not square, which bcu does not do")
        edge = size.get("shortest_edge", size.get("height", 0))
        if self.kind == "ConvNext":
            if edge >= _SQUASHED_FROM:
                return (edge, edge), (edge, edge), SQUASH
            longer = int(edge / self.number("crop_pct", 224 / 256))
            return (longer, longer), (edge, edge), CENTER
        if self.kind == "Levit":
            edge = int((256 / 224) * edge)
        elif self.kind == "PoolFormer":
            edge = int(edge / self.number("crop_pct", 0.9))
        return (edge, edge), None, CENTER

    def normalisation(self) -> dict[str, Any]:
        """Read mean and deviation, converted to images in [0, 1] from the scale of the processor."""
        scale, shift = self.scale()
        top = self.flag_of("include_top", "EfficientNet", default=True)
        deviation = self.per_channel("image_std")
        mean: list[float] | None = [0.0] * self.channels
        std: list[float] | None = [1.0] * self.channels
        if self.kind != "MobileViT" and self.flag("do_normalize", True):
            mean, std = self.per_channel("image_mean"), deviation
        if top:
            std = None if std is None or deviation is None else _products(std, deviation)
        return {
            "mean": None if mean is None else [(value + shift) / scale for value in mean],
            "std": None if std is None else [value / scale for value in std],
        }

    def scale(self) -> tuple[float, float]:
        """The processor's values for images in [0, 1]: their range, and how far it is shifted down."""
        rescales = self.flag("do_rescale", True)
        scale = 255 * self.number("rescale_factor", 1 / 255) if rescales else 255.0
        offset = self.flag_of("rescale_offset", "EfficientNet", default=False)
        return 1.0 if math.isclose(scale, 1.0, rel_tol=1e-6) else scale, 1.0 if offset and rescales else 0.0

    def per_channel(self, name: str) -> list[float] | None:
        """A field with one number per channel."""
        value = self.fields.get(name)
        if value is None:
            return None
        values: list[Any] = value if isinstance(value, list) else [value] * self.channels
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
        if not numbers or len(values) != self.channels:
            raise _RefusedError(
                f"{name} {abbreviated(value)} is not one number for each of "
                f"{number_of(self.channels, 'channel')}"
            )
        return [float(one) for one in values]

    def interpolation(self) -> dict[str, Any]:
        """Read the filter of the resizing."""
        value = self.fields.get("resample")
        if value is None:
            return {"interpolation": "bilinear" if self.kind in _BILINEAR else "bicubic"}
        if type(value) is not int or not 0 <= value < len(_RESAMPLE):
            raise _RefusedError(f"resample {abbreviated(value)} is none of Pillow's filters")
        return {"interpolation": _RESAMPLE[value]}

    def channel_order(self) -> dict[str, Any]:
        """Read the order of the channels, RGB or BGR."""
        flips = self.flag_of("do_flip_channel_order", "MobileViT", default=True)
        return {"channel_order": BGR} if flips else {}


def _products(left: list[float], right: list[float]) -> list[float]:
    return [a * b for a, b in zip(left, right, strict=True)]


def read(fields: dict[str, Any], model_type: str, channels: int) -> ConfigFields:
    """Read a ``preprocessor_config.json``.

    Args:
        fields: The table of the file.
        model_type: The model type in the ``config.json`` beside it, which gives the processor if the file
            names none.
        channels: Channels of the network's input.
    """
    kind = _kind(fields, model_type)
    if kind not in _USUAL:
        return ConfigFields(refusals=(f"image_processor_type {abbreviated(kind)} is none that bcu knows",))
    reader = _Reader(fields, kind, channels)
    values: dict[str, Any] = {}
    for part in (reader.geometry, reader.normalisation, reader.interpolation, reader.channel_order):
        try:
            values |= part()
        except _RefusedError as error:
            reader.refusals.append(str(error))
    unknown = [name for name in fields if name not in HEEDED | HARMLESS]
    if kind not in _WITH_SHARE and fields.get("crop_pct") is not None:
        unknown.append("crop_pct")
    complaints = (
        f"{name[:60]} is no field of the {kind} image processor, and is not heeded" for name in unknown
    )
    return ConfigFields(fields=values, refusals=tuple(reader.refusals), complaints=tuple(complaints))


def with_normalisation(
    fields: dict[str, Any], model_type: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """The table of a ``preprocessor_config.json`` for a given normalisation.

    Args:
        fields: The table of the file.
        model_type: The model type, as :func:`read` takes it.
        mean: Mean per channel of images in [0, 1].
        std: Deviation per channel of images in [0, 1].

    Returns:
        The table as it is if it says so already; else a changed copy.

    Raises:
        ValueError: The processor does not normalise, or not in such a way.
    """
    if _says(fields, model_type, mean, std):
        return fields
    scale, shift = _Reader(fields, _kind(fields, model_type), len(mean)).scale()
    changed = fields | {
        "do_normalize": True,
        "image_mean": [value * scale - shift for value in mean],
        "image_std": [value * scale for value in std],
    }
    if _kind(fields, model_type) == "EfficientNet":
        changed["include_top"] = False  # it would divide by the deviation once more
    if not _says(changed, model_type, mean, std):
        raise ValueError(f"a {_kind(fields, model_type)} image processor does not normalise so")
    return changed


def _says(fields: dict[str, Any], model_type: str, mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether a table says this normalisation, up to rounding."""
    stated = read(fields, model_type, len(mean)).fields
    found, wanted = [*(stated.get("mean") or ()), *(stated.get("std") or ())], [*mean, *std]
    return len(found) == len(wanted) and all(
        math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) for one, other in zip(found, wanted, strict=True)
    )


def _kind(fields: dict[str, Any], model_type: str) -> str:
    """The processor that a table names, else the usual one of the type of model."""
    named = fields.get("image_processor_type", fields.get("feature_extractor_type"))
    return PROCESSORS[model_type] if named is None else _plain_name(str(named))


def _plain_name(named: str) -> str:
    for ending in ("Pil", "Fast", "FeatureExtractor", "ImageProcessor"):
        named = named.removesuffix(ending)
    return named
