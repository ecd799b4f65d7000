"""The speed of a training, and the peak speed of its device in matrix products."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.models.architectures.dispatch import DispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bcu_cli.training.devices import Device

_SIDES = {"cuda": 8192}
_USUAL_SIDE = 2048
_CONVOLUTIONS = {"cuda": (256, 512, 28)}
_USUAL_CONVOLUTION = (32, 128, 16)
"""Number of images, channels, and side in pixels of the measured convolution."""
_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Amount and time of a training's work.

    Args:
        images: Images in all steps; an image counts once in every step.
        seconds: Seconds spent in steps.
        flops_per_image: Floating-point operations of one step, forward and backward, for each of its images;
            a multiplication and an addition are two, everything but matrix products and convolutions none.
    """

    images: int
    seconds: float
    flops_per_image: float

    def as_json(self, peak: float) -> dict[str, Any]:
        """The throughput for a report; ``peak`` is in operations a second."""
        speed = self.images / self.seconds if self.seconds else 0.0
        return {
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(speed, 1),
            "flops_per_image": round(self.flops_per_image),
            "peak_flops_per_second": round(peak),
            "share_of_peak": round(speed * self.flops_per_image / peak, 4),
        }


class FlopCounter(DispatchMode):
    """Counts the floating-point operations inside the context, by torch's formulas.

    torch's ``FlopCounterMode`` also tracks modules, and fails where gradients are computed inside a forward
    pass, as in adversarial training. Its formula for the gradients of a convolution forgets the groups: in a
    depthwise one of 1,280 channels the gradient of the weights would count 1,280 times.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # which imports triton, where that is installed

        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas = dict(flop_registry)
        self._formulas[torch.ops.aten.convolution_backward] = _flops_of_gradients
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation, and add its count."""
        out = func(*args, **(kwargs or {}))
        if formula := self._formulas.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _flops_of_gradients(output: Tensor, inputs: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """Operations of a convolution's backward pass: each of its two gradients costs as much as the forward."""
    from torch.utils.flop_counter import conv_flop_count

    transposed, wanted = rest[4], rest[7]
    before, kernel, after = (list(each.shape) for each in (inputs, weight, output))
    one: int = conv_flop_count(before, kernel, after, transposed=transposed)
    return one * sum(map(bool, wanted[:2]))


def measure_peak(device: Device) -> float:
    """Operations a second of a square matrix product, in the precision that ``device`` trains in.

    The result is the best run within half a second.
    """
    side = _SIDES.get(device.torch.type, _USUAL_SIDE)
    kind: Any = {"dtype": _dtype(device), "device": device.torch}
    a, b = (torch.full((side, side), value, **kind) for value in (0.5, 0.25))
    return 2.0 * side**3 / _fastest(lambda: a @ b, device)


@torch.inference_mode()
def measure_convolution_peak(device: Device) -> float:
    """Operations a second of a 3x3 convolution between equally many channels; see ``measure_peak``."""
    images, channels, side = _CONVOLUTIONS.get(device.torch.type, _USUAL_CONVOLUTION)
    kind: Any = {"dtype": _dtype(device), "device": device.torch}
    inputs = torch.full((images, channels, side, side), 0.5, **kind)
    weights = torch.full((channels, channels, 3, 3), 0.25, **kind)
    inputs, weights = (each.contiguous(memory_format=torch.channels_last) for each in (inputs, weights))
    best = _fastest(lambda: torch.conv2d(inputs, weights, padding=1), device)
    return 2.0 * images * side**2 * channels**2 * 9 / best


def _dtype(device: Device) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(device.precision, torch.float32)


def _fastest(work: Callable[[], object], device: Device) -> float:
    """Seconds of the fastest run within half a second."""
    _timed(work, device)  # warm-up
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        best = min(best, _timed(work, device))
    return best


def _timed(work: Callable[[], object], device: Device) -> float:
    device.wait()
    started = time.perf_counter()
    work()
    device.wait()
    return time.perf_counter() - started
