"""The verdicts of ``--method auto`` as a detector: verdicts counted by what the cleansing truly left."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

REMOVED, LEFT = 0.05, 0.10
"""A backdoor is removed up to the first ASR after the cleansing, and left above the second."""
COLUMNS = ("ASR up to 5 %", "5 to 10 %", "over 10 %", "no backdoor")
_WORDS = ("cleansed", "not cleansed", "could not tell")


def counts(cells: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count networks by verdict and by their true ASR after the cleansing; empty without verdicts.

    Args:
        cells: Contents of the cells' files. Failed ones and those of methods without a verdict do not count.
    """
    found: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        verdict = (cell["made"] or {}).get("verdict")
        if not cell["error"] and verdict:
            found[verdict["word"], _column(cell["after"]["asr"])] += 1
    words = (*_WORDS, *sorted({word for word, _ in found} - set(_WORDS)))
    return {word: {column: found[word, column] for column in COLUMNS} for word in words} if found else {}


def lines(counted: dict[str, dict[str, int]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    return ["verdict", *COLUMNS], [[word, *map(str, row.values())] for word, row in counted.items()]


def shares(counted: dict[str, dict[str, int]]) -> Sequence[str]:
    """What the counts mean, in sentences."""
    said = []
    cleansed = counted.get("cleansed", {})
    for column, what in ((COLUMNS[0], "whose backdoor was removed"), (COLUMNS[2], "whose backdoor was left")):
        total = sum(row[column] for row in counted.values())
        if total:
            said.append(f"Of {total} {what}, {cleansed[column]} are called cleansed.")
    return said


def _column(asr: dict[str, Any] | None) -> str:
    if asr is None:
        return COLUMNS[3]
    return COLUMNS[0] if asr["value"] <= REMOVED else COLUMNS[1] if asr["value"] <= LEFT else COLUMNS[2]
