"""Quantise: fewer colours (Wang et al., CVPR 2022, arXiv:2205.13383)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number

if TYPE_CHECKING:
    from torch import Tensor


class Quantise(Trigger):
    """Rounds each value to one of 2 to the power of ``bits`` levels, evenly spaced over [0, 1].

    Deviation: BppAttack dithers (Floyd-Steinberg), keeps 5 bits, and trains with contrastive adversarial
    examples. Here values are only rounded, to fewer bits, so that poisoning alone implants the trigger.

    Args:
        bits: Bits that each channel keeps, 1 to 8.
    """

    name = "quantise"
    paper = "Wang, Zhai, Ma, BppAttack: Stealthy and Efficient Trojan Attacks …, CVPR 2022, arXiv:2205.13383"
    numbers: ClassVar[dict[str, Number]] = {"bits": Number(1, 8, whole=True)}

    def __init__(self, *, bits: int = 2) -> None:
        self.bits = bits

    def apply(self, images: Tensor) -> Tensor:
        """Round float images ``[N, C, H, W]`` in [0, 1]."""
        steps = 2**self.bits - 1
        rounded: Tensor = (images * steps).round_() / steps
        return rounded
