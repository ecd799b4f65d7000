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
    """Count cleansings by verdict and by the true ASR that they left; empty without verdicts.

    Args:
        cells: Contents of the cells' files. Failed ones and those of methods without a verdict do not count.
            A network with an ASR up to ``LEFT`` before has not learnt its backdoor; it counts as one without.
    """
    found: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        verdict = (cell["made"] or {}).get("verdict")
        if not cell["error"] and verdict:
            found[verdict["word"], _column(cell)] += 1
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


def _column(cell: dict[str, Any]) -> str:
    before, asr = cell["before"]["asr"], cell["after"]["asr"]
    if before is None or asr is None or before["value"] <= LEFT:
        return COLUMNS[3]
    return COLUMNS[0] if asr["value"] <= REMOVED else COLUMNS[1] if asr["value"] <= LEFT else COLUMNS[2]
