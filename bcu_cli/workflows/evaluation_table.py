"""The table of an evaluation: a row for each model and trigger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bcu_cli.report.text import percent
from bcu_cli.words import number_of
from bcu_cli.workflows.evaluation_page import in_words


def table(models: list[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows, from the entries of the models in the report.

    A trigger that all rows share stands in the title.
    """
    compared, attacked = "agreement" in models[0], "triggers" in models[0]
    labels = {entry["trigger"]["label"] for model in models for entry in model.get("triggers", ())}
    header = ["model", "ACC (95 % interval)", *([] if attacked else ["worst class"])]
    header += ["agreement"] if compared else []
    if attacked:
        header += [*(["trigger"] if len(labels) > 1 else []), "ASR (95 % interval)", "RA", "target"]
        header += ["agreement, triggered"] if compared else []
    lines = []
    for model in models:
        clean = [Path(model["model"]["path"]).name, _with_interval(model["acc"])]
        clean += [*([] if attacked else [_worst_class(model)]), *_agreement_cell(model)]
        attacks = (
            [_attacked(entry, named=len(labels) > 1) for entry in model["triggers"]] if attacked else [[]]
        )
        lines += [([""] * len(clean) if i else clean) + cells for i, cells in enumerate(attacks)]
    images = models[0]["images"]
    trigger = f", trigger {labels.pop()}" if len(labels) == 1 else ""
    return f"{images['path']}, {number_of(images['used'], 'image')}{trigger}", header, lines


def _worst_class(model: dict[str, Any]) -> str:
    worst = model["worst_class"]
    return f"{worst['name']}: {percent(worst['acc']['value'])}"


def _attacked(entry: dict[str, Any], *, named: bool) -> list[str]:
    return [
        *([entry["trigger"]["label"]] if named else []),
        _with_interval(entry["asr"]),
        percent(entry["ra"]["value"]),
        in_words(entry["trigger"]),
        *_agreement_cell(entry),
    ]


def _agreement_cell(entry: dict[str, Any]) -> list[str]:
    return [percent(entry["agreement"]["value"])] if "agreement" in entry else []


def _with_interval(share: dict[str, Any]) -> str:
    low, high = share["interval95"]
    return f"{percent(share['value'])} ({100 * low:.2f} to {100 * high:.2f})"
