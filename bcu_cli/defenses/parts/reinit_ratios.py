"""The share of each layer's weights to re-initialise: the ratios of the paper's section 4.1 and Table 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcu_cli.defenses.bcu import BcuOptions

QUARTERS = 4
"""Parts of the depth between the first layer and the classifier; in a ResNet-18, its four stages."""
INITS = ("adaptive", "uniform", "decreasing", *(f"layer:{k}" for k in range(1, QUARTERS + 1)))


def refuse_unknown(init: str) -> None:
    """Refuse an unknown initialisation.

    Raises:
        UsageError: The name is not one of ``INITS``.
    """
    if init not in INITS:
        raise UsageError(f"there is no initialisation {init}", f"--init takes {', '.join(INITS)}")


def ratio_of(depth: int, deepest: int, options: BcuOptions) -> float:
    """The re-initialisation ratio delta at a depth from 1 to ``deepest`` (section 4.1).

    The first ratio is that of the first layer, the last one that of the classifier. The depths in between are
    divided equally among the other ratios. In a ResNet-18 depths 2 to 17 are its eight blocks of two.
    """
    return min(1.0, _at(depth, deepest, options.ratios) * options.strength)


def ratios_of(depths: Sequence[int], weights: Sequence[int], options: BcuOptions) -> list[float]:
    """The ratio of each layer by ``options.init``, always for the same number of weights (Table 4).

    ``uniform`` is one ratio for all layers. ``decreasing`` has the adaptive ratios in reverse order, except
    the classifier's. ``layer:K`` re-initialises the K-th quarter of the depth alone. Where a layer would need
    more weights than it has, all of it is re-initialised; the other layers make up for it as far as they can.

    Deviation: the paper gives its single layer the ratio of ``uniform``, and so a smaller share of all
    weights. It names no values of its decreasing ratios.

    Args:
        depths: Depth of each layer, from 1.
        weights: Number of weights of each layer.
        options: Ratios, strength, and ``init``.
    """
    deepest = max(depths)
    adaptive = [ratio_of(depth, deepest, options) for depth in depths]
    if options.init == "adaptive":
        return adaptive
    wanted = sum(ratio * count for ratio, count in zip(adaptive, weights, strict=True))
    return _scaled([_shape(depth, deepest, options) for depth in depths], weights, wanted)


def _at(depth: int, deepest: int, ratios: Sequence[float]) -> float:
    first, *between, last = ratios
    if depth == deepest:
        return last
    if depth == 1:
        return first
    return between[(depth - 2) * len(between) // (deepest - 2)]


def _shape(depth: int, deepest: int, options: BcuOptions) -> float:
    """The ratio at a depth, up to a common factor."""
    if options.init == "uniform":
        return 1.0
    if options.init == "decreasing":
        *rising, last = options.ratios
        return _at(depth, deepest, [*reversed(rising), last])
    wanted = int(options.init.removeprefix("layer:"))
    inside = 1 < depth < deepest
    return float(inside and (depth - 2) * QUARTERS // (deepest - 2) == wanted - 1)


def _scaled(shape: Sequence[float], weights: Sequence[int], wanted: float) -> list[float]:
    """``min(1, factor * shape)``; the factor makes it ``wanted`` weights, or as many as possible."""
    low, high = 0.0, 1.0 / min((value for value in shape if value > 0), default=1.0)
    for _ in range(60):
        middle = (low + high) / 2
        drawn = sum(min(1.0, middle * value) * count for value, count in zip(shape, weights, strict=True))
        low, high = (middle, high) if drawn < wanted else (low, middle)
    return [min(1.0, high * value) for value in shape]
