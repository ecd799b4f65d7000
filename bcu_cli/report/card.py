"""The model card of a cleansed file: a ``README.md`` with the front matter that model hubs read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints import write_bytes
from bcu_cli.errors import OutputError
from bcu_cli.report.text import architecture_name, counted, printable
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMITS = (
    "a backdoor unlike all of these tests may remain, and so may one that is made to appear only after "
    "distillation (a distillation-conditional backdoor); run bcu inspect --scan on the result as well"
)
"""Limits of a good verdict."""
_NAME = "README.md"
_LIBRARIES = ("timm", "transformers")
_NO_VERDICT = "Not judged. This method does not judge its result."


def refuse_existing(out: Path) -> None:
    """Refuse a folder that has a card already.

    Raises:
        OutputError: There is a ``README.md`` beside ``out``.
    """
    card = out.parent / _NAME
    if card.exists() or card.is_symlink():
        raise OutputError(
            f"--card would overwrite {card}", "give --out in a folder of its own, as clean/model.safetensors"
        )


def write(report: Mapping[str, Any], base_model: str | None) -> tuple[Path, str]:
    """Write the card beside the output of a cleansing; returns its path and SHA-256.

    Args:
        report: The report of the command, with ``output``.
        base_model: Name of the original on the hub; None where that is not known.

    Raises:
        OutputError: The file cannot be written, or there is one.
    """
    out = Path(report["output"]["path"])
    refuse_existing(out)
    path = out.parent / _NAME
    return path, write_bytes(path, text(report, base_model).encode())


def text(report: Mapping[str, Any], base_model: str | None) -> str:
    """The card as Markdown; text from files is neutralised.

    Args:
        report: The report of the command, with ``output``.
        base_model: Name of the original on the hub; None where that is not known.
    """
    verdict, name = report["verdict"], Path(report["output"]["path"]).name
    classes = report["model"]["architecture"]["num_classes"]
    network = architecture_name(report["model"]["architecture"]["name"])
    judged = f"{verdict['word'].capitalize()}. {_plain(verdict['why'])}" if verdict else _NO_VERDICT
    rows = "\n".join(f"| {key} | {value} |" for key, value in _rows(report))
    return f"""{_front_matter(report, base_model)}
# {_plain(name)}

An image classifier with {number_of(classes, "class", "classes")} ({_code(network)}), made from another model
in an attempt to remove a backdoor, with bcu {report["versions"]["bcu"]}, method {report["method"]}.

## Verdict

**{judged}**

Limits: {LIMITS}.

## Facts

| | |
|---|---|
{rows}

bcu did not measure the accuracy on labelled images. It does not know the licence, which is the original's.
"""


def _front_matter(report: Mapping[str, Any], base_model: str | None) -> str:
    """YAML, with each value in the notation of JSON, which is YAML too."""
    library = report["model"]["architecture"]["name"].partition(":")[0]
    fields: dict[str, Any] = {"base_model": base_model} if base_model else {}
    fields |= {
        "library_name": library if library in _LIBRARIES else "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "backdoor-removal", "bcu"],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---", ""])


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, output, images, agreement = (report[key] for key in ("model", "output", "images", "agreement"))
    preprocessing = model["preprocessing"]
    size = "×".join(map(str, preprocessing["input_size"]))
    mean, std = (", ".join(f"{value:g}" for value in preprocessing[key]) for key in ("mean", "std"))
    rows = [
        ("original", f"{_code(Path(model['path']).name)}, SHA-256 {_code(model['sha256'])}"),
        ("this file", f"{_code(Path(output['path']).name)}, SHA-256 {_code(output['sha256'])}"),
        ("input", f"{size} in [0, 1], then mean {mean} and standard deviation {std}"),
    ]
    if images:
        rows.append(("images", f"{images['used']} used, {images['held_out']} held out, without labels"))
    if images and images["labels"]:
        rows[-1] = ("images", rows[-1][1].replace("without labels", f"labels from {images['labels']}"))
    if agreement:
        rows.append(("same class as the original, held-out images", counted(agreement["after"])))
    return rows


def _plain(text: str) -> str:
    """Text without Markdown, HTML and control characters."""
    return re.sub(r"[\\`*_{}\[\]<>|#&~]", r"\\\g<0>", printable(text))


def _code(text: str) -> str:
    return "`" + printable(str(text)).replace("`", "'").replace("|", "\\|") + "`"
