"""The metadata that bcu writes into model files: architecture, preprocessing and class names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bcu_cli.models.configs import claims
from bcu_cli.models.configs.transformers_config import is_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bcu_cli.models.architecture import Architecture
    from bcu_cli.models.preprocessing import Preprocessing


def metadata_for(
    architecture: Architecture, preprocessing: Preprocessing, classes: Sequence[str] = ()
) -> dict[str, str]:
    """The metadata of a model file: keys ``bcu.*``, with JSON values.

    The architecture of a transformers network is left out, since the ``config.json`` beside the file gives
    it.

    Args:
        architecture: Architecture of the model.
        preprocessing: Preprocessing of the model.
        classes: Names of the classes in the order of the outputs; empty where they are not known.

    Raises:
        ValueError: The number of names is neither 0 nor the number of classes.
    """
    if classes and len(classes) != architecture.num_classes:
        raise ValueError(f"{len(classes)} class names for {architecture.num_classes} classes")
    values: dict[str, Any] = {
        claims.ARCH: None if is_config(architecture.name) else architecture.name,
        claims.NUM_CLASSES: architecture.num_classes,
        claims.INPUT_SIZE: preprocessing.input_size,
        claims.MEAN: preprocessing.mean,
        claims.STD: preprocessing.std,
        claims.CROP_PCT: preprocessing.crop_pct,
        claims.CROP_MODE: preprocessing.crop_mode,
        claims.INTERPOLATION: preprocessing.interpolation,
        claims.CHANNEL_ORDER: preprocessing.channel_order,
    }
    if classes:
        values[claims.CLASSES] = list(classes)
    return {key: json.dumps(value) for key, value in values.items() if value is not None}


def class_names(metadata: Mapping[str, str], num_classes: int) -> tuple[str, ...]:
    """Read the names of the classes, in the order of the outputs, from the metadata of a file.

    Returns:
        The names; empty if there is not one distinct name for each class.
    """
    try:
        names = json.loads(metadata.get(claims.CLASSES, "[]"))
    except ValueError:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names) if len(names) == len(set(names)) == num_classes else ()
