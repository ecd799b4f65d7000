"""How fast a training runs, beside the fastest that its device multiplies matrices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import flop_registry

from bcu_cli.models.watching import Watching

if TYPE_CHECKING:
    from bcu_cli.training.devices import Device

_SIDES = {"cuda": 8192}
_USUAL_SIDE = 2048
_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What a training did in a time.

    Args:
        images: That were trained on, each view counted.
        seconds: Spent in steps.
        flops_per_image: Floating-point operations of one step, forward and backward, for each of its images;
            a multiplication and an addition are two, everything but matrix products and convolutions none.
    """

    images: int
    seconds: float
    flops_per_image: float

    def as_json(self, peak: float) -> dict[str, Any]:
        """For a report, beside ``peak`` in operations a second."""
        speed = self.images / self.seconds if self.seconds else 0.0
        return {
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(speed, 1),
            "flops_per_image": round(self.flops_per_image),
            "peak_flops_per_second": round(peak),
            "share_of_peak": round(speed * self.flops_per_image / peak, 4),
        }


class FlopCounter(Watching):
    """Counts the floating-point operations of what runs inside it, by torch's own formulas.

    torch's ``FlopCounterMode`` also follows the modules, and so fails where a gradient is asked for midway,
    as in adversarial training.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation, and add what it takes."""
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def measure_peak(device: Device) -> float:
    """Operations a second of a square matrix product, in the precision that ``device`` trains in.

    The best of as many as fit into half a second.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(device.precision, torch.float32)
    side = _SIDES.get(device.torch.type, _USUAL_SIDE)
    a, b = (torch.full((side, side), value, dtype=dtype, device=device.torch) for value in (0.5, 0.25))
    _multiply(a, b, device)  # the first one includes setting up
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        best = min(best, _multiply(a, b, device))
    return 2.0 * side**3 / best


def _multiply(a: torch.Tensor, b: torch.Tensor, device: Device) -> float:
    device.wait()
    started = time.perf_counter()
    a @ b
    device.wait()
    return time.perf_counter() - started
