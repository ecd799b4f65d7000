"""Finds out whether labels and a network's outputs are in different orders.

Folders of classes are taken in alphabetical order where nothing names the network's classes. In another order
even a perfect network seems to be wrong about nearly all images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

FEWEST_IMAGES = 3
"""Fewest images of a class that say what it is predicted as."""
SHARE_OF_CLASSES = 0.5
"""Share of the classes from which on the order is in doubt."""


def doubt_of_order(answers: Tensor, labels: Tensor, names: Sequence[str]) -> str:
    """What speaks against the order of the classes, as a sentence; empty where nothing does.

    Most images of at least half of the classes are then predicted as another class, and no two classes as the
    same one. A network that is merely bad, or predicts one class for all, does not do that.

    Args:
        answers: Predictions on images without a trigger, int64 ``[N]``.
        labels: The classes that the images are taken to have, int64 ``[N]``.
        names: The names of the classes.
    """
    known = labels >= 0
    table = torch.zeros(len(names), len(names), dtype=torch.int64)
    table.index_put_((labels[known], answers[known]), torch.ones(int(known.sum()), dtype=torch.int64), True)
    shown = [row for row in range(len(names)) if int(table[row].sum()) >= FEWEST_IMAGES]
    usual = {row: int(table[row].argmax()) for row in shown if 2 * table[row].max() > table[row].sum()}
    moved = {row: column for row, column in usual.items() if row != column}
    distinct = len(set(usual.values())) == len(usual)
    if len(moved) < 2 or len(moved) < SHARE_OF_CLASSES * len(shown) or not distinct:
        return ""
    row, column = next(iter(moved.items()))
    return (
        f"most images of {names[row]} are predicted as output {column}, which is taken for {names[column]}, "
        f"and {len(moved)} of {len(shown)} classes are so: their order may not be that of the outputs"
    )
