"""What bcu writes into the files it makes, so that they say themselves what they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bcu_cli.models import claims
from bcu_cli.models.transformers_config import is_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bcu_cli.models.architecture import Architecture
    from bcu_cli.models.preprocessing import Preprocessing


def metadata_for(
    architecture: Architecture, preprocessing: Preprocessing, classes: Sequence[str] = ()
) -> dict[str, str]:
    """The metadata of a model file: keys ``bcu.*``, each value JSON.

    A network of transformers is not named: the ``config.json`` beside the file says what it is.

    Args:
        architecture: Of the model.
        preprocessing: Of the model.
        classes: Names of the classes in the order of the outputs; none where they are not known.

    Raises:
        ValueError: There are names, but not one for each class.
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
    """The names of the classes in the order of the outputs, as the metadata of a file made by bcu have them.

    Empty where there are none, or not one different name for each class.
    """
    try:
        names = json.loads(metadata.get(claims.CLASSES, "[]"))
    except ValueError:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names) if len(names) == len(set(names)) == num_classes else ()
