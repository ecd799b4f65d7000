"""Checks the settings of an untrusted configuration before they reach a constructor."""

from __future__ import annotations

from typing import Any

MOST_SIDE = 2_048
_MOST = 65_536
_MOST_LAYERS, _MOST_WINDOW = 1_000, 64
_MOST_FRACTION = 1e6
_MOST_TEXT = 200
_MOST_NESTED = 2


def is_plain(key: str, value: Any, depth: int = 0) -> bool:
    """Whether a setting is a text, a number of plausible size, or a list of these."""
    if isinstance(value, list):
        fits = depth < _MOST_NESTED and len(value) <= _MOST_LAYERS
        return fits and all(is_plain(key, item, depth + 1) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return 0 <= value <= _most(key)
    if isinstance(value, float):
        return abs(value) <= _MOST_FRACTION  # False for NaN
    return value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= _MOST_TEXT)


def _most(key: str) -> int:
    """The largest whole number that is allowed for a setting of this name."""
    if "layers" in key or "depth" in key or "repeats" in key or "stages" in key:
        return _MOST_LAYERS
    if "window" in key:
        return _MOST_WINDOW
    return MOST_SIDE if "image" in key or "img" in key or "patch" in key else _MOST
