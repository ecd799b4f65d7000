"""Finds out whether labels and a network's outputs are in different orders.

Folders of classes are taken in alphabetical order where nothing names the network's classes. In another order
even a perfect network seems to be wrong about nearly all images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bcu_cli.evaluation.measures import Proportion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

FEWEST_IMAGES = 8
"""Fewest images of a class that say what it is predicted as."""
SHARE_OF_CLASSES = 0.5
"""Share of the classes from which on the order is in doubt."""


def doubt_of_order(answers: Tensor, labels: Tensor, names: Sequence[str]) -> str:
    """What speaks against the order of the classes, as a sentence; empty where nothing does.

    More than half of the images of a class, by the 95 % interval, are then predicted as one other class. That
    is so for at least half of the classes, and no two are predicted as the same one.

    Args:
        answers: Predictions on images without a trigger, int64 ``[N]``.
        labels: The classes that the images are taken to have, int64 ``[N]``.
        names: The names of the classes.
    """
    totals = torch.bincount(labels, minlength=len(names)).tolist()
    pairs, counts = torch.unique(labels * len(names) + answers, return_counts=True)
    usual: dict[int, int] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        row, column = divmod(pair, len(names))
        if totals[row] >= FEWEST_IMAGES and Proportion(hits=count, of=totals[row]).interval[0] > 0.5:
            usual[row] = column
    moved = {row: column for row, column in usual.items() if row != column}
    shown = sum(total >= FEWEST_IMAGES for total in totals)
    distinct = len(set(usual.values())) == len(usual)
    if len(moved) < 2 or len(moved) < SHARE_OF_CLASSES * shown or not distinct:
        return ""
    row, column = next(iter(moved.items()))
    return (
        f"most images of {names[row]} are predicted as output {column}, which is taken for {names[column]}, "
        f"and {len(moved)} of {shown} classes are so: their order may not be that of the outputs"
    )
