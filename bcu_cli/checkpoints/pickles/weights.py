"""Finding the weights in an unpickled value: nested tables, prefixes, and entries besides the weights."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints.checkpoint import Omission, Placeholder
from bcu_cli.checkpoints.pickles.extra_entries import LEFT_OUT, EntryFilter, is_optimizer, is_tensor
from bcu_cli.checkpoints.pickles.inert import key_text
from bcu_cli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch

METADATA_KEY = "metadata"
OWN_METADATA_KEY = "bcu_metadata"
"""Key of bcu's metadata if the file has something other than texts under ``METADATA_KEY``."""
_MAX_DEPTH = 6
_MAX_SHARING = (
    64  # largest total size of the weights, which may share memory, in multiples of the file's size
)
_MAX_SHARING_BESIDE = 4  # the same limit for tensors besides the weights
_PREFIXES = ("module.", "_orig_mod.")
_AVERAGE = re.compile(r"(^|[^a-z])(ema|swa|averaged?|shadow)([^a-z]|$)|_ema|ema_", re.IGNORECASE)
_MOST_NAMED = 5
_WHOLE = 0.9  # share of the largest table's tensors that a table needs to count as complete weights


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The fields of a :class:`Checkpoint` that come from a file's content; documented there."""

    tensors: dict[str, torch.Tensor]
    nesting: tuple[str, ...] = ()
    prefix: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    tables: tuple[dict[Any, Any], ...] = ()
    omitted: tuple[Omission, ...] = ()
    others: tuple[str, ...] = ()
    choice: str = ""


@dataclass(frozen=True)
class _Table:
    """A table that holds tensors."""

    nesting: tuple[str, ...]
    count: int

    @property
    def path(self) -> str:
        """The keys that lead to it, as ``--weights-key`` takes them."""
        return "/".join(self.nesting)

    @property
    def is_average(self) -> bool:
        return any(map(_is_average, self.nesting))


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """The chosen table, the paths of other candidates, and the reason for the choice, for people."""

    nesting: tuple[str, ...]
    others: tuple[str, ...] = ()
    why: str = ""


def find_weights(path: Path, value: Any, key: str | None = None) -> Weights:
    """Find the classifier's weights in an unpickled value.

    Candidates are the tables with nearly as many tensors as the largest one. Weights are preferred to their
    average, then more tensors to fewer, outer tables to inner ones, and the first to later ones. An exception
    is timm's average, which is preferred because timm validates it. Optimizer state is never a candidate.

    Args:
        path: The file.
        value: The unpickled value.
        key: Path of the table to take, its keys joined with ``/``; None chooses one automatically.

    Raises:
        CheckpointError: There are no tensors, no table ``key``, or tensors of a kind that bcu cannot handle.
    """
    tables = list(_tables(value, (), set()))
    if not tables:
        raise no_weights(path)
    if key is None:
        return _collect(path, value, _choose(tables, value))
    if key not in [table.path for table in tables]:
        there = f"it has {', '.join(table.path or repr('') for table in tables[:_MOST_NAMED])}"
        raise CheckpointError(f"{path} has no weights under {key!r}", there, rule="no-weights")
    (chosen,) = (table for table in tables if table.path == key)
    return _collect(path, value, _Choice(nesting=chosen.nesting, why="as --weights-key says"))


def _choose(tables: list[_Table], value: dict[Any, Any]) -> _Choice:
    """Choose the table of the weights automatically."""
    largest = max(table.count for table in tables)
    whole = [table for table in tables if table.count >= _WHOLE * largest]
    best = min(whole, key=lambda table: (table.is_average, -table.count, len(table.nesting)))
    why = "the first table with the most tensors that is no average"
    average = next((table for table in whole if table.nesting == ("state_dict_ema",)), None)
    if average and best.nesting == ("state_dict",) and "metric" in value:
        best, why = average, "the average, which timm validates and whose metric it reports"
    others = tuple(table.path for table in whole if table is not best)
    return _Choice(nesting=best.nesting, others=others, why=why if others else "")


def flat_weights(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Weights:
    """The weights of a file whose format holds only one flat table of tensors.

    Raises:
        CheckpointError: There are no tensors.
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
    """The wrapper prefixes (``module.``, ``_orig_mod.``) that all names share; may be several or none."""
    rest = list(names)
    prefix = ""
    while rest and (
        found := next((p for p in _PREFIXES if all(n.startswith(p) and n != p for n in rest)), "")
    ):
        prefix += found
        rest = [name.removeprefix(found) for name in rest]
    return prefix


def _tables(value: Any, nesting: tuple[str, ...], seen: set[int]) -> Iterable[_Table]:
    if not isinstance(value, dict) or id(value) in seen or len(nesting) > _MAX_DEPTH or is_optimizer(value):
        return
    seen.add(id(value))
    items = _items(value)
    count = sum(isinstance(key, str) and is_tensor(item) for key, item in items)
    if count:
        yield _Table(nesting, count)
    for key, item in items:
        if isinstance(key, str) and "optim" not in key.lower():
            yield from _tables(item, (*nesting, key), seen)


def _collect(path: Path, value: Any, choice: _Choice) -> Weights:
    nesting = choice.nesting
    innermost = _entry(value, nesting)
    found = {name: item for name, item in _items(innermost) if isinstance(name, str) and is_tensor(item)}
    prefix = split_prefix(found)
    tensors = {name.removeprefix(prefix): _checked(path, name, item) for name, item in found.items()}
    if sum(tensor.nbytes for tensor in tensors.values()) > _MAX_SHARING * path.stat().st_size:
        message = f"{path}: its tensors claim to be many times larger than the file"
        raise CheckpointError(message, "get the file again", rule="impossible-size")
    entry_filter = EntryFilter(tensors, _is_average, _MAX_SHARING_BESIDE * path.stat().st_size)
    metadata: dict[str, str] = {}
    tables = []
    for depth in range(len(nesting) + 1):
        places = set(nesting[depth : depth + 1]) if depth < len(nesting) else set(found)
        texts = {} if depth else _metadata_of(value)
        tables.append(_kept_table(value, entry_filter, nesting[:depth], places, texts))
        metadata |= next(iter(texts.values()), {})
        value = None if depth == len(nesting) else value[nesting[depth]]
    return Weights(
        tensors=tensors,
        nesting=nesting,
        prefix=prefix,
        metadata=metadata,
        tables=tuple(tables),
        omitted=tuple(entry_filter.omitted),
        others=choice.others,
        choice=choice.why,
    )


def _kept_table(
    table: dict[Any, Any],
    entry_filter: EntryFilter,
    above: tuple[str, ...],
    places: set[str],
    texts: dict[str, Any],
) -> dict[Any, Any]:
    """One table on the way to the weights, with placeholders, as it will be written back."""
    kept_table: dict[Any, Any] = OrderedDict() if type(table) is OrderedDict else {}
    for key, item in _items(table):
        is_text = isinstance(key, str)
        if is_text and key in places:
            kept_table[key] = Placeholder.WEIGHTS
        elif is_text and key in texts:
            kept_table[key] = Placeholder.METADATA
        elif (kept := entry_filter.keep("/".join([*above, key_text(key)]), key, item)) is not LEFT_OUT:
            kept_table[key] = kept
    return kept_table


def _metadata_of(table: dict[Any, Any]) -> dict[str, dict[str, str]]:
    """The metadata in the outermost table, by its key; empty if it holds none."""
    for key in (METADATA_KEY, OWN_METADATA_KEY):
        texts: Any = dict.get(table, key)
        if _is_text_table(texts):
            return {key: dict(texts)}
    return {}


def _checked(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    import torch

    tensor = torch.Tensor.detach(tensor)  # a pickle can replace methods by attributes of the tensor
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        hint = "save the model's ordinary (not quantized, not sparse) weights"
        message = f"{path}: {name!r} is quantized, sparse or without data"
        raise CheckpointError(message, hint, rule="unsupported-weights")
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        message = f"{path}: {name!r} claims to be larger than the file"
        raise CheckpointError(message, "get the file again", rule="impossible-size")
    return tensor


def _is_average(name: str) -> bool:
    return _AVERAGE.search(name) is not None


def _entry(value: dict[Any, Any], nesting: tuple[str, ...]) -> dict[Any, Any]:
    for key in nesting:
        value = value[key]
    return value


def _is_text_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for pair in value.items() for item in pair)


def _items(table: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """The entries of a table, without its methods, which a pickle can replace by attributes."""
    return list(dict.items(table))
