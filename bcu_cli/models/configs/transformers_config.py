"""Image classifiers of transformers, built from the settings in a ``config.json`` without running its code.

Only settings that the architecture's configuration class knows are taken from the file. A setting that is no
text, number or list of these is refused. Settings that could download or import something (``auto_map``,
kernels from the hub, quantisation) are not taken. Needs the extra ``transformers``.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import ArchitectureError, BcuError
from bcu_cli.models.configs.config_fields import abbreviated
from bcu_cli.models.configs.plain_settings import is_plain

if TYPE_CHECKING:
    from torch import nn

PREFIX = "transformers:"
_TYPES = """
    beit bit clip convnext convnextv2 cvt data2vec-vision deit dinov2 dinov2_with_registers efficientnet
    focalnet hiera ijepa levit metaclip_2 mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pvt
    pvt_v2 regnet resnet segformer siglip swiftformer swin swinv2 vit vit_msn
"""
MODEL_TYPES = frozenset(_TYPES.split())
"""The architectures that are built; others load networks of other libraries, or process text."""
LARGEST_CONFIG = 1 << 20
VISION = "vision_config"
"""The table for the encoder of images, in configurations that have one of texts too."""
_HINT = "give --arch NAME, or --arch FILE.py:FUNCTION"


def is_config(name: str) -> bool:
    """Whether an architecture's name has the form ``transformers:FILE.json``."""
    return name.startswith(PREFIX) and name.endswith(".json")


def is_image_classifier(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` describes an image classifier of transformers that can be built."""
    names = config.get("architectures")
    named = isinstance(names, list) and any(str(name).endswith("ForImageClassification") for name in names)
    return named and str(config.get("model_type")) in MODEL_TYPES


def is_foreign(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` describes a network of transformers that bcu does not build."""
    names = config.get("architectures")
    described = isinstance(names, list) and bool(names) and isinstance(config.get("model_type"), str)
    return described and "architecture" not in config and not is_image_classifier(config)


def named(config: dict[str, Any]) -> str:
    """The architecture of a foreign ``config.json``, in words."""
    return (
        f"describes {abbreviated(config['architectures'][0])}, which is no image classifier that bcu builds"
    )


def build(name: str, *, num_classes: int) -> nn.Module:
    """Build the network that a ``config.json`` describes, with random weights; it returns logits.

    Args:
        name: ``transformers:FILE.json``.
        num_classes: Number of outputs.

    Raises:
        ArchitectureError: The file describes no image classifier, or one that cannot be built.
        BcuError: transformers is not installed.
    """
    file = Path(name.removeprefix(PREFIX))
    config = _read(file)
    try:
        import transformers
    except ImportError as error:
        message = f"{file} is of a network of transformers, which is not installed"
        raise BcuError(message, "pip install transformers") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library: Any = transformers
        settings = _settings(file, config, library)
        described = library.AutoConfig.for_model(config["model_type"], **settings, num_labels=num_classes)
        described.architectures = [name for name in config["architectures"] if isinstance(name, str)]
        network: nn.Module = library.AutoModelForImageClassification.from_config(
            described, trust_remote_code=False, attn_implementation="eager"
        )
    network.register_forward_hook(_logits)
    return network


def _settings(file: Path, config: dict[str, Any], library: Any) -> dict[str, Any]:
    """The settings of the file that the architecture's configuration class knows."""
    default = library.AutoConfig.for_model(config["model_type"])
    common = set(library.PretrainedConfig().to_dict())
    settings = _known(file, config, default, common)
    nested = config.get(VISION)
    if hasattr(default, VISION) and isinstance(nested, dict):
        settings[VISION] = _known(file, nested, getattr(default, VISION), common)
    return settings


def _known(file: Path, table: dict[str, Any], default: Any, common: set[str]) -> dict[str, Any]:
    """The settings of a table that a configuration has beside the common ones.

    The encoder of texts is left out, since an image classifier has none.

    Raises:
        ArchitectureError: A setting, which the message names, has no plausible value.
    """
    known = (set(default.to_dict()) | set(default.attribute_map)) - common - {VISION, "text_config"}
    settings = {key: value for key, value in table.items() if key in known}
    for key, value in settings.items():
        if not is_plain(key, value):
            raise ArchitectureError(
                f"{file}: {key} {abbreviated(value)} is nothing that bcu builds from", _HINT
            )
    return settings


def _logits(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001 - what a hook is given
    return output.logits


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise ArchitectureError(f"{file} is too large for a configuration", _HINT)
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArchitectureError(f"{file} is not readable JSON", _HINT) from error
    if not isinstance(config, dict) or not is_image_classifier(config):
        raise ArchitectureError(f"{file} describes no image classifier that bcu knows", _HINT)
    return config
