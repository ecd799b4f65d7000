"""Entries of a pickle besides the weights: harmless ones are kept and written back, others are only listed.

Objects of classes are omitted, and so is everything that may hold the backdoor too: optimizer state,
averaged weights, and other copies of the weights.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints.checkpoint import Omission
from bcu_cli.checkpoints.pickles.inert import Global, RecordedCall, key_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

LEFT_OUT = object()
"""Marks an entry that is not kept."""
MAY_HOLD = "may hold the backdoor"
_MAX_DEPTH = 12
_MAX_ONE = 100_000  # values and characters of one entry
_MAX_ALL = 1_000_000  # values and characters of all entries
_LONGEST_INTEGER = 1024  # bits
_NAMES = (".weight", ".bias", ".running_mean", ".running_var")
_TABLES = (dict, OrderedDict, Counter)


class EntryFilter:
    """Decides which entries besides the weights are kept, and lists those that are omitted.

    References let a pickle of a few bytes describe a huge nested value. So the filter limits the number of
    values it visits, the characters of texts, and the bytes of tensors.

    Args:
        weights: The chosen tensors, by their names without a wrapper's prefix.
        is_average: Whether a name is that of an average of the weights.
        most_bytes: Limit of the total size of the kept tensors, in bytes, none sharing memory.
    """

    def __init__(
        self, weights: Mapping[str, torch.Tensor], is_average: Callable[[str], bool], most_bytes: int
    ) -> None:
        self.omitted: list[Omission] = []
        self._names = set(weights)
        self._shapes = {tuple(tensor.shape) for tensor in weights.values() if tensor.dim() > 1}
        self._half = sum(tensor.numel() for tensor in weights.values()) / 2
        self._is_average = is_average
        self._bytes_left = most_bytes
        self._visited = self._limit = 0

    def keep(self, name: str, key: Any, value: Any) -> Any:
        """The value to write back, without the omitted entries of its tables; ``LEFT_OUT`` to omit all of it.

        Args:
            name: The path of the entry, for messages.
            key: The entry's key.
            value: The entry's value.
        """
        self._limit = min(self._visited + _MAX_ONE, _MAX_ALL)
        return self._keep(name, key, value, 0)

    def _keep(self, name: str, key: Any, value: Any, depth: int) -> Any:
        why, kind = self._reason(key, value, depth)
        if not why and type(value) in _TABLES:
            return self._keep_table(name, value, depth)
        if not why:
            return value
        self.omitted.append(Omission(name=name, why=why, kind=kind))
        return LEFT_OUT

    def _keep_table(self, name: str, table: dict[Any, Any], depth: int) -> Any:
        made, before = type(table)(), len(self.omitted)
        for key, item in dict.items(table):
            kept = self._keep(f"{name}/{key_text(key)}", key, item, depth + 1)
            if kept is not LEFT_OUT:
                made[key] = kept
        if table and not made:  # all its entries are omitted: list the table, not each entry
            first = self.omitted[before]
            self.omitted[before:] = [Omission(name=name, why=first.why, kind=first.kind)]
            return LEFT_OUT
        return made

    def _reason(self, key: Any, value: Any, depth: int) -> tuple[str, str]:
        """Why an entry is omitted, and its class if it is an object; two empty texts if it is kept."""
        if not self._is_within_limits(value) or depth > _MAX_DEPTH:
            return "it is too large to keep", ""
        if isinstance(value, RecordedCall | Global):
            return f"an object of {value.kind}", value.kind
        if not self._is_key(key):
            return f"its key is a {type(key).__name__}", ""
        if is_optimizer(value) or ("optim" in str(key).lower() and self._has_tensors(value)):
            return f"the state of an optimizer, which {MAY_HOLD}", ""
        if self._is_average(str(key)) and self._has_tensors(value):
            return f"an average of the weights, which {MAY_HOLD}", ""
        if type(value) in _TABLES:
            return (f"other weights, which {MAY_HOLD}" if self._are_weights(value) else ""), ""
        if is_tensor(value):
            return self._tensor_reason(value), ""
        if type(value) in (list, tuple, set):
            reasons = (self._reason(None, item, depth + 1) for item in value)
            inner = (self._reason_inside(item, depth + 1) for item in value if type(item) in _TABLES)
            return next((found for each in (reasons, inner) for found in each if found[0]), ("", ""))
        return ("" if _is_plain(value) else f"a {type(value).__name__}"), ""

    def _reason_inside(self, table: dict[Any, Any], depth: int) -> tuple[str, str]:
        """Why a list is omitted because of a table in it: entries of lists are never removed one by one."""
        for key, item in dict.items(table):
            found = self._reason(key, item, depth + 1)
            if not found[0] and type(item) in _TABLES:
                found = self._reason_inside(item, depth + 1)
            if found[0]:
                return found
        return "", ""

    def _tensor_reason(self, tensor: torch.Tensor) -> str:
        import torch

        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            return "a quantized or sparse tensor, or one without data"
        if tuple(tensor.shape) in self._shapes or (
            tensor.is_floating_point() and tensor.numel() > 1 and tensor.numel() >= self._half
        ):
            return f"a tensor like the weights, which {MAY_HOLD}"
        self._bytes_left -= tensor.numel() * tensor.element_size()
        return "" if self._bytes_left >= 0 else "it claims to be far larger than the file"

    def _has_tensors(self, value: Any, depth: int = 0) -> bool:
        """Whether a value holds a tensor; True also if the value is too large to search."""
        if not self._is_within_limits(None) or depth > _MAX_DEPTH:
            return True
        if type(value) in _TABLES:
            return any(self._has_tensors(item, depth + 1) for item in dict.values(value))
        if type(value) in (list, tuple):
            return any(self._has_tensors(item, depth + 1) for item in value)
        return is_tensor(value)

    def _are_weights(self, table: dict[Any, Any]) -> bool:
        self._visited += len(table)
        named = [key for key, item in dict.items(table) if isinstance(key, str) and is_tensor(item)]
        return any(key.removeprefix("module.") in self._names or key.endswith(_NAMES) for key in named)

    def _is_within_limits(self, value: Any) -> bool:
        letters = len(value) if type(value) in (str, bytes, bytearray) else 0
        self._visited += 1 + letters
        return self._visited <= self._limit

    def _is_key(self, key: Any) -> bool:
        if type(key) is tuple:
            return all(self._is_within_limits(item) and _is_plain(item) for item in key)
        return _is_plain(key) and (type(key) not in (str, bytes) or self._is_within_limits(key))


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor or a parameter."""
    import torch

    return isinstance(value, torch.Tensor)


def is_optimizer(value: Any) -> bool:
    """Whether a value is the state of an optimizer."""
    return isinstance(value, dict) and "param_groups" in value and "state" in value


def _is_plain(value: Any) -> bool:
    import torch

    if type(value) is int:
        return value.bit_length() < _LONGEST_INTEGER
    plain = (str, float, bool, complex, bytes, bytearray, type(None), torch.Size, torch.device, torch.dtype)
    return type(value) in plain
