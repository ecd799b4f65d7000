"""A TOML table that is read key by key; keys that nothing has read are errors.

It is kept by hand because the options of a command are keys too, which no fixed schema could list.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

from bcu_cli.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Table:
    """A table of a plan.

    Args:
        values: Values of the table.
        path: Path of the table in the file, like ``data.cifar10``; empty for the whole file.
        source: Name of the file.
    """

    def __init__(self, values: Any, path: str, source: str) -> None:
        self._path, self._source = path, source
        if not isinstance(values, dict):
            raise self.error(f"[{path}] is no table", f"begin it with [{path}] on a line of its own")
        self._values = dict(values)
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, default: str) -> str:
        """Read a string."""
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "is no text", '"like this"')
        return value

    def whole(self, key: str, default: int | None) -> int | None:
        """Read an integer from 1."""
        value = self._take(key, default)
        if value is not None and not _is_whole(value, 1):
            raise self._wrong(key, "is no whole number from 1", "5000")
        return None if value is None else int(value)

    def texts(self, key: str, default: list[str]) -> list[str]:
        """Read a list of strings."""
        return [str(value) for value in self._list(key, default, lambda v: isinstance(v, str), '["a", "b"]')]

    def wholes(self, key: str, default: list[int], *, least: int) -> list[int]:
        """Read a list of integers from ``least``."""
        return [
            int(value) for value in self._list(key, default, lambda v: _is_whole(v, least), "[500, 2500]")
        ]

    def classes(self, key: str) -> list[int | str]:
        """Read a list of class indices, which may include ``next``."""
        return self._list(key, [0], lambda v: v == "next" or _is_whole(v, 0), '[0, 1] or ["next"]')

    def tables(self, key: str) -> dict[str, Table]:
        """Read named tables; the names must be valid in file names."""
        within = self.table(key)
        for name in within._values:
            if not _NAME.fullmatch(name):
                message = f"[{within._path}.{name}] is no name of a {key}"
                raise self.error(message, "letters, digits, and . _ + - in between")
        return {name: Table(v, f"{within._path}.{name}", self._source) for name, v in within._values.items()}

    def table(self, key: str) -> Table:
        """Read an inner table; a missing one is empty."""
        return Table(self._take(key, {}), f"{self._path}.{key}".strip("."), self._source)

    def array(self, key: str) -> list[Table]:
        """Read an array of tables."""
        values = self._list(key, [{}], lambda v: isinstance(v, dict), "[{targets = [0], seeds = [0, 1]}]")
        return [Table(value, key, self._source) for value in values]

    def options(self, reserved: set[str]) -> dict[str, Any]:
        """Read all remaining keys as options of a command, by their names without leading dashes.

        Args:
            reserved: Options that the benchmark sets, which are refused.
        """
        for key, value in self._values.items():
            if key in reserved:
                raise self.error(f"[{self._path}] gives {key}, which the plan decides", "leave it out")
            plain = all(
                isinstance(v, str | int | float) for v in (value if isinstance(value, list) else [value])
            )
            if not (plain and re.fullmatch(r"[a-z][a-z-]*", key)):
                message = f"[{self._path}] {key} = {value} is no option"
                raise self.error(message, 'like learning-rate = 0.05, flip = true, setting = ["delta=60"]')
        values, self._values = self._values, {}
        return values

    def done(self) -> None:
        """Refuse keys that were not read."""
        for key in self._values:
            near = get_close_matches(key, self._known, 1)
            known = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(self._known))}"
            raise self.error(f"there is no key {key}{f' in [{self._path}]' if self._path else ''}", known)

    def error(self, message: str, hint: str) -> UsageError:
        """An error that names this file."""
        return UsageError(f"{self._source}: {message}", hint)

    def _take(self, key: str, default: Any) -> Any:
        self._known.append(key)
        return self._values.pop(key, default)

    def _list(self, key: str, default: Any, fits: Any, like: str) -> list[Any]:
        values = self._take(key, default)
        if not (isinstance(values, list) and values and all(map(fits, values))):
            raise self._wrong(key, "is not what it takes", like)
        if any(value in values[:i] for i, value in enumerate(values)):
            raise self._wrong(key, "names something twice", like)
        return values

    def _wrong(self, key: str, what: str, like: str) -> UsageError:
        where = f" in [{self._path}]" if self._path else ""
        return self.error(f"{key}{where} {what}", f"like {key} = {like}")


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A table in which another one overrides values, also in inner tables."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
