"""Finds the architectures whose tensors have a file's shapes, whatever the file's names are.

Candidates that compute the same function of the file's tensors are one group. Which of several groups it is,
only the network itself can tell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bcu_cli.errors import ArchitectureError, BcuError
from bcu_cli.models.architectures.index import Candidate, Shapes, compared_shapes, match_shapes
from bcu_cli.models.architectures.pairing import pairings
from bcu_cli.models.networks.builtin import TENSORS, split_width

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Group = tuple[Candidate, ...]
Renaming = tuple[tuple[str, str], ...]
_LARGEST_TRACED = 30_000_000
"""Larger networks are not built with real constants to be compared."""


def find_renamed(shapes: Shapes, wanted: Callable[[str], bool] = bool) -> tuple[Group, ...]:
    """The architectures that fit the shapes of the tensors, with the renaming of the tensors.

    Args:
        shapes: Shape of each tensor by its name, in the file's order.
        wanted: Whether an architecture of that name is looked for.

    Returns:
        Groups of candidates that compute the same function, the likeliest first.
    """
    groups: dict[tuple[str, Renaming], list[Candidate]] = {}
    paired: dict[tuple[str, int], list[Candidate]] = {}
    for names_hash, candidate in _candidates(shapes, wanted):
        known = paired.setdefault((names_hash, candidate.num_classes), [])
        if not known:
            known += _paired(candidate, shapes)
        for one in known:
            fitted = replace(candidate, renamed=one.renamed, pairing=one.pairing)
            key = (candidate.structure or candidate.name, tuple(one.renamed.items()))
            groups.setdefault(key, []).append(fitted)
    found = list(groups.values())
    return tuple(map(tuple, found if len(found) < 2 else _merged(found)))


def _candidates(shapes: Shapes, wanted: Callable[[str], bool]) -> list[tuple[str, Candidate]]:
    """Architectures with these shapes in any order, each with a hash of its tensors' names."""
    found = [
        (entry.names_hash, candidate) for entry, candidate in match_shapes(shapes) if wanted(candidate.name)
    ]
    return found or [(one.name, one) for one in _of_other_widths(shapes, wanted)]


def _of_other_widths(shapes: Shapes, wanted: Callable[[str], bool]) -> list[Candidate]:
    """Built-in networks that fit if they are as wide as the first convolution of the file."""
    first = next((shape for shape in shapes.values() if len(shape) == 4), None)
    if first is None or first[0] > 4096:
        return []
    found = []
    number = len(compared_shapes(shapes))
    for base in TENSORS:
        if split_width(base)[1] is not None or TENSORS[base] != number:
            continue
        name = f"{base}_w{first[0]}"
        if not wanted(name):
            continue
        from bcu_cli.models.architectures.fitting import class_side

        try:
            classes = class_side(name, shapes, (first[1], 32, 32))
        except ArchitectureError:  # far larger than the file
            continue
        if classes is not None:
            found.append(
                Candidate(
                    name=name, structure="", num_classes=classes, in_channels=first[1], preprocessing=None
                )
            )
    return found


def _paired(candidate: Candidate, shapes: Shapes) -> list[Candidate]:
    """The candidate with each of the consistent pairings of the tensors."""
    from bcu_cli.models.architectures.fitting import filled_template

    expected = filled_template(candidate, shapes)
    return [
        replace(candidate, renamed=pairing, pairing=words) for pairing, words in pairings(shapes, expected)
    ]


def _merged(groups: list[list[Candidate]]) -> list[list[Candidate]]:
    """Join the groups that compute the same function of the file's tensors."""
    size = _common_size(groups)
    merged: dict[str, list[Candidate]] = {}
    for i, group in enumerate(groups):
        same = merged.setdefault(_function(group[0], size) or f"group {i}", [])
        same += [one for one in group if one.name not in [other.name for other in same]]
    return list(merged.values())


def _common_size(groups: list[list[Candidate]]) -> tuple[int, int, int]:
    """An input size for all groups: that of the first that has a default."""
    first = groups[0][0]
    default = next((g[0].preprocessing.input_size for g in groups if g[0].preprocessing), (3, 32, 32))
    return (first.in_channels, *default[1:])


def _function(candidate: Candidate, size: tuple[int, int, int]) -> str:
    """The hash of what a candidate computes of the file's tensors; empty where it cannot be told."""
    import torch

    from bcu_cli.models.architectures.fitting import build_size
    from bcu_cli.models.architectures.structure import UntraceableError, function_hash
    from bcu_cli.models.registry import build

    own_size = build_size(candidate)
    names: Mapping[str, str] = {own: given for given, own in candidate.renamed.items()}
    for device in ("meta", "cpu"):
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):
                network = build(candidate.name, num_classes=candidate.num_classes, input_size=own_size)
            if device == "cpu" and sum(p.numel() for p in network.parameters()) > _LARGEST_TRACED:
                return ""
            return function_hash(network, size, names)
        except (UntraceableError, BcuError):
            continue
    return ""
