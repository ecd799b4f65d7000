"""Pairs the tensors of a file with those of an architecture whose tensors have other names.

Names are used only to group tensors to layers and to tell the kind of a tensor (weight, bias, running
statistics). Where a file's names say nothing, the order alone counts. The pairings are candidates: whoever
uses them has to decide between them by what the network does.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from bcu_cli.models.architectures.index import Shape, Shapes, compared_shapes, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

#: Last parts of tensor names that tell the kind of a tensor; any other is of the kind "".
_KINDS = frozenset({"weight", "bias", "running_mean", "running_var"})
AVERAGED = "n_averaged"
"""Name of the step counter of ``torch.optim.swa_utils.AveragedModel``, which belongs to no network."""
_COUNTER = "num_batches_tracked"
_DIGITS = re.compile(r"(\d+)")

#: A tensor's name in the file, and in the network.
Pairing = dict[str, str]
Named = tuple[str, Shape]


def pairings(shapes: Shapes, expected: Shapes) -> list[tuple[Pairing, str]]:
    """The consistent ways to pair a file's tensors with a network's, with a few words on each.

    The file's order is taken if it fits. Else layers are paired by the tree of their names, or a convolution
    with the norm behind it is paired as one; within equal shapes the order counts.

    Args:
        shapes: Shape of each tensor in the file, by its name, in the file's order.
        expected: Shape of each of the network's tensors, in the order of registration.

    Returns:
        The distinct pairings, the likeliest first; empty if the tensors do not fit.
    """
    own, theirs = compared_shapes(shapes), compared_shapes(expected)
    if Counter(shape for _, shape in own) != Counter(shape for _, shape in theirs):
        return []
    found: list[tuple[Pairing, str]] = []
    for pairing, words in _ways(own, theirs):
        whole = pairing and _with_scalars(pairing, shapes, expected)
        if whole and whole not in [known for known, _ in found]:
            found.append((whole, words))
            if words == _IN_ORDER:
                break
    return found


_IN_ORDER = "in their order"


def _ways(own: list[Named], theirs: list[Named]) -> Iterable[tuple[Pairing | None, str]]:
    sorted_own, sorted_theirs = sorted(own, key=_natural), sorted(theirs, key=_natural)
    yield _in_order(own, theirs), _IN_ORDER
    yield _in_order(sorted_own, theirs), _IN_ORDER
    yield _by_tree(own, theirs), "layer by layer"
    yield _by_tree(sorted_own, sorted_theirs), "layer by layer, in the order of their names"
    yield _by_unit(own, theirs), "each convolution with its norm"
    yield _by_unit(sorted_own, theirs), "each convolution with its norm, in the order of their names"


def _natural(named: Named) -> list[tuple[int, str]]:
    """A sort key by which ``layer10`` comes after ``layer2``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(named[0])]


def _kind(name: str) -> str:
    last = name.rpartition(".")[2]
    return last if last in _KINDS else ""


def _agree(own: str, theirs: str) -> bool:
    """Whether the kinds that two names tell do not contradict each other."""
    return _kind(own) == _kind(theirs) or "" in (_kind(own), _kind(theirs))


def _in_order(own: Sequence[Named], theirs: Sequence[Named]) -> Pairing | None:
    pairs = list(zip(own, theirs, strict=True))
    if all(mine[1] == other[1] and _agree(mine[0], other[0]) for mine, other in pairs):
        return {mine[0]: other[0] for mine, other in pairs}
    return None


class _Node:
    """A layer, or a group of layers, of a tree of names; a leaf is one tensor."""

    def __init__(self, named: list[Named], depth: int) -> None:
        self.named, self.depth = named, depth

    def signature(self) -> tuple[tuple[tuple[str, Shape], int], ...]:
        """Kinds and shapes of all tensors below, in any order."""
        return tuple(sorted(Counter((_kind(name), shape) for name, shape in self.named).items()))

    def children(self) -> list[_Node]:
        """The parts of the next level at which names differ; empty for one tensor and for a plain layer."""
        names = [name.split(".") for name, _ in self.named]
        depth = self.depth
        while len(names) > 1:
            groups: dict[str, list[Named]] = {}
            for parts, named in zip(names, self.named, strict=True):
                groups.setdefault(".".join(parts[depth : depth + 1]), []).append(named)
            if len(groups) > 1:
                return [_Node(group, depth + 1) for group in groups.values()]
            depth += 1
        return []

    @property
    def is_layer(self) -> bool:
        """Whether it is a single tensor, or tensors that differ in the last part of their names alone."""
        return len({name.rpartition(".")[0] for name, _ in self.named}) == 1


def _by_tree(own: list[Named], theirs: list[Named]) -> Pairing | None:
    pairing: Pairing = {}
    waiting = [(_Node(own, 0), _Node(theirs, 0))]
    while waiting:
        mine, other = waiting.pop()
        if mine.is_layer and other.is_layer:
            pairing |= _within_layer(mine.named, other.named)
            continue
        pairs = _pair_children(mine, other)
        if pairs is None:
            return None
        waiting += pairs
    return pairing


def _within_layer(own: list[Named], theirs: list[Named]) -> Pairing:
    """Pair the tensors of two layers of one signature: by kind and shape, and else in their order."""
    return _pair_equal(own, theirs, lambda named: (_kind(named[0]), named[1]))


def _pair_equal(own: Sequence[Named], theirs: Sequence[Named], key: Callable[[Named], object]) -> Pairing:
    waiting = defaultdict(list)
    for name, shape in theirs:
        waiting[key((name, shape))].append(name)
    return {name: waiting[key((name, shape))].pop(0) for name, shape in own}


def _pair_children(mine: _Node, other: _Node) -> list[tuple[_Node, _Node]] | None:
    """Pair the parts of two nodes by signature, in order; a part that fits none is divided further."""
    own, theirs = ([node] if node.is_layer else node.children() for node in (mine, other))
    while True:
        counts = Counter(node.signature() for node in own)
        counts.subtract(node.signature() for node in theirs)
        odd = {signature for signature, count in counts.items() if count}
        if not odd:
            break
        divisible = [
            (len(node.named), side, i)
            for side, nodes in enumerate((own, theirs))
            for i, node in enumerate(nodes)
            if node.signature() in odd and not node.is_layer
        ]
        if not divisible:
            return None
        _, side, i = max(divisible)
        nodes = (own, theirs)[side]
        nodes[i : i + 1] = nodes[i].children()
    waiting = defaultdict(list)
    for node in theirs:
        waiting[node.signature()].append(node)
    return [(node, waiting[node.signature()].pop(0)) for node in own]


def _by_unit(own: list[Named], theirs: list[Named]) -> Pairing | None:
    mine, others = _units(own), _units(theirs)
    waiting = defaultdict(list)
    for unit in others:
        waiting[_Node(unit, 0).signature()].append(unit)
    pairing: Pairing = {}
    for unit in mine:
        same = waiting[_Node(unit, 0).signature()]
        if not same:
            return None
        pairing |= _within_layer(unit, same.pop(0))
    return pairing


def _units(named: list[Named]) -> list[list[Named]]:
    """A tensor of two or more dimensions, with the tensors of one dimension behind it."""
    units: list[list[Named]] = [[]]
    for name, shape in named:
        if len(shape) > 1 and units[-1]:
            units.append([])
        units[-1].append((name, shape))
    return units


def _with_scalars(pairing: Pairing, shapes: Shapes, expected: Shapes) -> Pairing | None:
    """A pairing with the scalars: counters go with their layer, others in order; None if they do not fit."""
    layers = {mine.rpartition(".")[0]: other.rpartition(".")[0] for mine, other in pairing.items()}
    whole = dict(pairing)
    rest = []
    for name in [name for name in shapes if name not in pairing and name.rpartition(".")[2] != AVERAGED]:
        layer, _, last = name.rpartition(".")
        counter = f"{layers.get(layer, '')}.{_COUNTER}".removeprefix(".")
        if last == _COUNTER and counter in expected:
            whole[name] = counter
        else:
            rest.append(name)
    left = [name for name in expected if name not in set(whole.values())]
    fitting: Mapping[int, list[str]] = {
        len(names): names for names in (left, [name for name in left if counted(name)])
    }
    others = fitting.get(len(rest), [])
    if len(others) != len(rest):
        return None
    if any(shapes[mine] != expected[other] for mine, other in zip(rest, others, strict=True)):
        return None
    return whole | dict(zip(rest, others, strict=True))
