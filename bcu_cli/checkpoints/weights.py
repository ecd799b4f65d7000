"""Where the weights are in what a pickle held: nested tables, prefixes, and what stands beside them."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import CheckpointError

from .checkpoint import Omission, Placeholder
from .extra_entries import LEFT_OUT, EntryFilter, is_optimizer, is_tensor
from .inert import shown

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch

METADATA_KEY = "metadata"
OWN_METADATA_KEY = "bcu_metadata"
"""Where bcu's own metadata stand if the file has something else than texts under ``METADATA_KEY``."""
_MAX_DEPTH = 6
_MAX_SHARING_BESIDE = 4  # and those beside the weights
_MAX_SHARING = 64  # so many times the file's size can its tensors be that share their memory
_PREFIXES = ("module.", "_orig_mod.")
_AVERAGE = re.compile(r"(^|[^a-z])(ema|swa|averaged?|shadow)([^a-z]|$)|_ema|ema_", re.IGNORECASE)
_MOST_NAMED = 5
_WHOLE = 0.9  # a table with this share of the largest one's tensors is taken as all of the weights


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The fields of a :class:`Checkpoint` that come from a pickle's content; described there."""

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
    """A table with tensors in it."""

    nesting: tuple[str, ...]
    count: int

    @property
    def path(self) -> str:
        """Its keys, as ``--weights-key`` takes them."""
        return "/".join(self.nesting)

    @property
    def is_average(self) -> bool:
        return any(map(_is_average, self.nesting))


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """The table that is taken, the paths of others that could have been, and why, for people."""

    nesting: tuple[str, ...]
    others: tuple[str, ...] = ()
    why: str = ""


def find_weights(path: Path, value: Any, key: str | None = None) -> Weights:
    """Find the classifier's weights in an unpickled value.

    Of several tables with tensors, those with nearly as many tensors as the largest are compared: the weights
    themselves go before an average of them, more tensors before fewer, the outer before the inner, the first
    before the second. Where timm keeps an average, that is what it has validated, and it goes first. The
    state of an optimizer is never taken for weights.

    Args:
        path: The file.
        value: What its pickle holds.
        key: The path of the table to take, its keys joined with ``/``; None is to be found out.

    Raises:
        CheckpointError: There are no tensors, or none under ``key``, or of a kind that bcu cannot handle.
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
    """The table to take for the weights where nobody says which."""
    largest = max(table.count for table in tables)
    whole = [table for table in tables if table.count >= _WHOLE * largest]
    best = min(whole, key=lambda table: (table.is_average, -table.count, len(table.nesting)))
    why = "the first of those with most tensors that are no average"
    average = next((table for table in whole if table.nesting == ("state_dict_ema",)), None)
    if average and best.nesting == ("state_dict",) and "metric" in value:
        best, why = average, "the average, which timm validates and names the metric of"
    others = tuple(table.path for table in whole if table is not best)
    return _Choice(nesting=best.nesting, others=others, why=why if others else "")


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
    keeper = EntryFilter(tensors, _is_average, _MAX_SHARING_BESIDE * path.stat().st_size)
    metadata: dict[str, str] = {}
    tables = []
    for depth in range(len(nesting) + 1):
        places = set(nesting[depth : depth + 1]) if depth < len(nesting) else set(found)
        texts = {} if depth else _metadata_of(value)
        tables.append(_kept_table(value, keeper, nesting[:depth], places, texts))
        metadata |= next(iter(texts.values()), {})
        value = None if depth == len(nesting) else value[nesting[depth]]
    return Weights(
        tensors=tensors,
        nesting=nesting,
        prefix=prefix,
        metadata=metadata,
        tables=tuple(tables),
        omitted=tuple(keeper.omitted),
        others=choice.others,
        choice=choice.why,
    )


def _kept_table(
    table: dict[Any, Any],
    keeper: EntryFilter,
    above: tuple[str, ...],
    places: set[str],
    texts: dict[str, Any],
) -> dict[Any, Any]:
    """One table on the way to the weights as it is to be written back."""
    kept_table: dict[Any, Any] = OrderedDict() if type(table) is OrderedDict else {}
    for key, item in _items(table):
        is_text = isinstance(key, str)
        if is_text and key in places:
            kept_table[key] = Placeholder.WEIGHTS
        elif is_text and key in texts:
            kept_table[key] = Placeholder.METADATA
        elif (kept := keeper.keep("/".join([*above, shown(key)]), key, item)) is not LEFT_OUT:
            kept_table[key] = kept
    return kept_table


def _metadata_of(table: dict[Any, Any]) -> dict[str, dict[str, str]]:
    """The table of texts in the outermost table that are metadata, by its key; none where there is none."""
    for key in (METADATA_KEY, OWN_METADATA_KEY):
        texts: Any = dict.get(table, key)
        if _is_text_table(texts):
            return {key: dict(texts)}
    return {}


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


def _is_average(name: str) -> bool:
    return _AVERAGE.search(name) is not None


def _entry(value: dict[Any, Any], nesting: tuple[str, ...]) -> dict[Any, Any]:
    for key in nesting:
        value = value[key]
    return value


def _is_text_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for pair in value.items() for item in pair)


def _items(table: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """The entries of a table, to which a pickle can give attributes, also such as its methods."""
    return list(dict.items(table))
