"""The results of the paper, for comparison with measured ones."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    """The paper's results for one attack and one defense, as shares in [0, 1].

    Args:
        before: ASR and ACC of the backdoored networks.
        after: ASR and ACC of the cleansed ones.
    """

    before: dict[str, float]
    after: dict[str, float]


@cache
def tables() -> dict[str, dict[str, Any]]:
    """The paper's tables by name, from ``paper.toml``."""
    return tomllib.loads((files(__package__) / "paper.toml").read_text(encoding="utf-8"))


def find(table: str, place: dict[str, Any]) -> Published | None:
    """The result in a table at a cell's coordinates; None where there is none."""
    found = tables().get(table)
    if found is None or any(place[key] != value for key, value in found.get("only", {}).items()):
        return None
    row = found.get(str(place["attack"]))
    column = " ".join(str(place[key]) for key in found["by"])
    if not isinstance(row, list) or column not in found["columns"]:
        return None
    has_original = "original" not in found
    original = row[0] if has_original else tables()[found["original"]][place["attack"]][0]
    return Published(
        before=_shares(original), after=_shares(row[found["columns"].index(column) + has_original])
    )


def title(table: str) -> str:
    """The name of a table in the paper; empty where there is none."""
    return str(tables().get(table, {}).get("title", ""))


def unlike(table: str, cell: dict[str, Any]) -> list[str]:
    """How a cell's network and its training differ from the setup of a table, in words.

    Args:
        table: Name of the table.
        cell: Content of the cell's file.
    """
    setup = tables().get(table, {}).get("setup", {})
    model = cell["decides"].get("model", {})
    made = {"arch": cell["cell"]["arch"], "epochs": model.get("options", {}).get("epochs", "by default")}
    made["train-images"] = model.get("data", {}).get("train_images") or "all"
    made["max-images"] = cell["cell"]["max-images"]
    return [
        f"{key} {made[key]}, not {' or '.join(map(str, values))}"
        for key, value in setup.items()
        if made[key] not in (values := value if isinstance(value, list) else [value])
    ]


def _shares(pair: list[float]) -> dict[str, float]:
    asr, acc = pair
    return {"asr": asr / 100, "acc": acc / 100}
