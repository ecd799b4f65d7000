"""Numbers with their nouns, for messages."""

from __future__ import annotations


def number_of(count: int, one: str, many: str = "") -> str:
    """A number and what it counts: ``1 image``, ``2,500 images``.

    Args:
        count: The number.
        one: What is counted, in the singular; it may go on, as in ``file is no image``.
        many: The same in the plural; by default ``one`` with an s.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
