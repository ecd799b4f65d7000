"""Where the weights are in what a pickle held: nested tables, prefixes, and what stands beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import CheckpointError

from .inert import Global, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch

    from .checkpoint import Plain

METADATA_KEY = "metadata"
_MAX_DEPTH = 6
_MAX_PLAIN = 100_000  # of one value beside the weights
_MAX_ALL_PLAIN = 1_000_000
_MAX_SHARING = 64  # so many times the file's size can its tensors be that share their memory
_PREFIXES = ("module.", "_orig_mod.")
_AVERAGE = re.compile(r"(^|[^a-z])(ema|swa|averaged?|shadow)([^a-z]|$)|_ema|ema_", re.IGNORECASE)
_WHOLE = 0.9  # a table with this share of the largest one's tensors is taken as all of the weights


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The fields of a :class:`Checkpoint` that come from a pickle's content; described there."""

    tensors: dict[str, torch.Tensor]
    nesting: tuple[str, ...] = ()
    prefix: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    beside: dict[str, Plain] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Table:
    """A table with tensors in it."""

    nesting: tuple[str, ...]
    count: int

    @property
    def is_average(self) -> bool:
        return any(_AVERAGE.search(key) for key in self.nesting)


def find_weights(path: Path, value: Any) -> Weights:
    """Find the classifier's weights in an unpickled value.

    Of several tables with tensors, those with nearly as many tensors as the largest are compared: the weights
    themselves go before an average of them, more tensors before fewer, the outer before the inner, the first
    before the second. The state of an optimizer is never taken for weights.

    Raises:
        CheckpointError: There are no tensors, or they are of a kind that bcu cannot handle.
    """
    tables = list(_tables(value, (), set()))
    if not tables:
        raise no_weights(path)
    largest = max(table.count for table in tables)
    whole = [table for table in tables if table.count >= _WHOLE * largest]
    nesting = min(whole, key=lambda table: (table.is_average, -table.count, len(table.nesting))).nesting
    return _collect(path, value, nesting)


def flat_weights(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Weights:
    """The weights of a file that can hold nothing else.

    Raises:
        CheckpointError: There are none.
    """
    if not tensors:
        raise no_weights(path)
    prefix = split_prefix(tensors)
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return Weights(tensors=bare, prefix=prefix, metadata=metadata)


def no_weights(path: Path) -> CheckpointError:
    """The error for a file without tensors."""
    hint = "bcu needs the weights: torch.save(model.state_dict(), ...)"
    return CheckpointError(
        f"{path} holds no weights: there is no named tensor in it", hint, rule="no-weights"
    )


def split_prefix(names: Iterable[str]) -> str:
    """The wrappers' prefix that all the names share: ``module.``, ``_orig_mod.``, several, or none."""
    rest = list(names)
    prefix = ""
    while rest and (
        found := next((p for p in _PREFIXES if all(n.startswith(p) and n != p for n in rest)), "")
    ):
        prefix += found
        rest = [name.removeprefix(found) for name in rest]
    return prefix


def _tables(value: Any, nesting: tuple[str, ...], seen: set[int]) -> Iterable[_Table]:
    if not isinstance(value, dict) or id(value) in seen or len(nesting) > _MAX_DEPTH or _is_optimizer(value):
        return
    seen.add(id(value))
    items = _items(value)
    count = sum(isinstance(key, str) and _is_tensor(item) for key, item in items)
    if count:
        yield _Table(nesting, count)
    for key, item in items:
        if isinstance(key, str) and "optim" not in key.lower():
            yield from _tables(item, (*nesting, key), seen)


def _collect(path: Path, value: Any, nesting: tuple[str, ...]) -> Weights:
    metadata: dict[str, str] = {}
    beside: dict[str, Plain] = {}
    left_out: list[str] = []
    budget = _Budget()
    for depth in range(len(nesting) + 1):
        for key, item in _items(value):
            name = "/".join([*nesting[:depth], _shown(key)])
            budget.kind = ""
            if depth < len(nesting) and key == nesting[depth]:
                continue
            if depth == len(nesting) and isinstance(key, str) and _is_tensor(item):
                continue
            if depth == 0 and key == METADATA_KEY and _is_text_table(item):
                metadata = dict(item)
            elif isinstance(key, str) and "optim" not in key.lower() and budget.is_plain(item):
                beside[name] = item
            else:
                left_out.append(f"{name} ({budget.kind})" if budget.kind else name)
        if depth < len(nesting):
            value = value[nesting[depth]]
    found = {name: item for name, item in _items(value) if isinstance(name, str) and _is_tensor(item)}
    prefix = split_prefix(found)
    tensors = {name.removeprefix(prefix): _checked(path, name, item) for name, item in found.items()}
    if sum(tensor.nbytes for tensor in tensors.values()) > _MAX_SHARING * path.stat().st_size:
        message = f"{path}: its tensors claim to be many times larger than the file"
        raise CheckpointError(message, "get the file again", rule="impossible-size")
    return Weights(
        tensors=tensors,
        nesting=nesting,
        prefix=prefix,
        metadata=metadata,
        beside=beside,
        left_out=tuple(left_out),
    )


def _checked(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    import torch

    tensor = torch.Tensor.detach(tensor)  # a pickle can give a tensor attributes, also such as its methods
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        hint = "save the model's ordinary (not quantized, not sparse) weights"
        message = f"{path}: {name!r} is quantized, sparse or without data"
        raise CheckpointError(message, hint, rule="unsupported-weights")
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        message = f"{path}: {name!r} claims to be larger than the file"
        raise CheckpointError(message, "get the file again", rule="impossible-size")
    return tensor


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _is_optimizer(table: Mapping[Any, Any]) -> bool:
    return "param_groups" in table and "state" in table


def _is_text_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for pair in value.items() for item in pair)


def _items(table: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """The entries of a table, to which a pickle can give attributes, also such as its methods."""
    return list(dict.items(table))


def _shown(key: Any) -> str:
    """A key as a text; only its type if it is of a kind whose text can be of any length."""
    if isinstance(key, Recipe | Global):
        return key.kind
    return str(key) if type(key) in (str, int, float, bool, type(None)) else type(key).__name__


class _Budget:
    """Tells plain values, until all of them together are too many to be worth keeping.

    A pickle of a few bytes can hold a list of a million times the same list, under any number of names: what
    is visited is counted, and the letters of texts.
    """

    def __init__(self) -> None:
        self.kind = ""
        """The class of the first object in the value that was looked at last, if there is one."""
        self._visited = 0
        self._limit = 0

    def is_plain(self, value: Any) -> bool:
        """Whether a value is made of texts, numbers and not too many tables and lists of them."""
        self._limit = min(self._visited + _MAX_PLAIN, _MAX_ALL_PLAIN)
        return self._look(value, 0)

    def _look(self, value: Any, depth: int) -> bool:
        self._visited += 1 + (len(value) if type(value) is str else 0)
        if self._visited > self._limit or depth > _MAX_DEPTH:
            return False
        if value is None or type(value) in (str, float, bool):
            return True
        if type(value) is int:
            return value.bit_length() < 64
        if type(value) in (list, tuple):
            return all(self._look(item, depth + 1) for item in value)
        if type(value) is dict and not _is_optimizer(value):
            return all(type(key) is str and self._look(item, depth + 1) for key, item in value.items())
        if isinstance(value, Recipe | Global):
            self.kind = value.kind
        return False
