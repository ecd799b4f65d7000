"""The configuration that a written network of transformers needs beside it to be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bcu_cli.checkpoints import Format, write_bytes
from bcu_cli.errors import ArchitectureError, OutputError
from bcu_cli.models.configs import transformers_processor
from bcu_cli.models.configs.transformers_config import LARGEST_CONFIG, PREFIX, is_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bcu_cli.models.architecture import Architecture
    from bcu_cli.models.preprocessing import Preprocessing

_PROCESSOR = "preprocessor_config.json"
_CODE = "auto_map"
"""Field that names Python files of the original's repository, which bcu has not run and does not pass on."""


def configs_for(
    architecture: Architecture,
    preprocessing: Preprocessing,
    format: Format,  # noqa: A002
) -> dict[str, bytes]:
    """Read the files that a network needs beside its weights, with the normalisation that it is given.

    Args:
        architecture: Architecture of the network.
        preprocessing: Preprocessing with which the network is cleansed.
        format: The format of its file.

    Returns:
        The content by file name: ``config.json``, and ``preprocessor_config.json`` where there is one.
        Empty for an architecture that the file itself can name, and for a format that holds the network.

    Raises:
        ArchitectureError: The configuration has become unreadable since it was read, or it cannot say that
            preprocessing.
    """
    if not is_config(architecture.name) or format is Format.TORCHSCRIPT:
        return {}
    config = Path(architecture.name.removeprefix(PREFIX))
    beside = config.with_name(_PROCESSOR)
    found = {config.name: _content(config)}
    if beside.is_file():
        found[_PROCESSOR] = _processor(
            beside, str(json.loads(found[config.name])["model_type"]), preprocessing
        )
    return found


def _processor(file: Path, model_type: str, preprocessing: Preprocessing) -> bytes:
    """The content of a processor's configuration, which says the preprocessing."""
    content = _content(file)
    fields = json.loads(content)
    size = transformers_processor.read(fields, model_type, preprocessing.input_size[0]).fields.get(
        "input_size"
    )
    if size is not None and tuple(size) != preprocessing.input_size:
        raise ArchitectureError(
            f"{file} says {size[1]}x{size[2]}, and bcu does not write another input size into it",
            "leave --input-size out, or write the network as --format torchscript",
        )
    try:
        changed = transformers_processor.with_normalisation(
            fields, model_type, preprocessing.mean, preprocessing.std
        )
    except ValueError as error:
        raise ArchitectureError(
            f"{file} cannot say --mean and --std: {error}",
            "leave them out, or write the network as --format torchscript",
        ) from None
    return content if changed is fields else (json.dumps(changed, indent=2) + "\n").encode()


def refuse_other_configs(out: Path, configs: Mapping[str, bytes]) -> None:
    """Refuse a folder that already holds another configuration, before any work.

    Raises:
        OutputError: A file beside ``out`` has the name of a configuration, and another content.
    """
    for name, content in configs.items():
        file = out.parent / name
        if (file.exists() or file.is_symlink()) and not _is_same(file, content):
            raise OutputError(
                f"{out} needs its own {name} beside it, and {file} is of another model",
                "give --out in a folder of its own, as clean/model.safetensors",
            )


def write_configs(out: Path, configs: Mapping[str, bytes]) -> dict[Path, str]:
    """Write the configurations beside a file of weights; one that is there already stays as it is.

    Returns:
        The SHA-256 of each file that was written.

    Raises:
        OutputError: A file cannot be written, or another model's is in its place.
    """
    refuse_other_configs(out, configs)
    missing = {out.parent / name: content for name, content in configs.items()}
    return {file: write_bytes(file, content) for file, content in missing.items() if not file.exists()}


def _is_same(file: Path, content: bytes) -> bool:
    """Whether a file has this content, apart from fields that bcu does not pass on."""
    try:
        return _content(file) == content
    except ArchitectureError:
        return False


def _content(file: Path) -> bytes:
    """The content of a configuration without the code that it names."""
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise ArchitectureError(f"{file} is too large for a configuration")
        content = file.read_bytes()
        fields = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ArchitectureError(f"{file} is not readable JSON", "get the file again") from error
    if not isinstance(fields, dict) or _CODE not in fields:
        return content
    del fields[_CODE]
    return (json.dumps(fields, indent=2) + "\n").encode()
