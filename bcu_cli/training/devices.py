"""The choice of device and precision, and the detection of out-of-memory errors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch

from bcu_cli.errors import UsageError
from bcu_cli.training import ranks
from bcu_cli.words import number_of


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device, and the precision of training on it.

    Args:
        torch: The device.
        precision: ``bf16`` where the hardware multiplies it faster than fp32, ``fp16`` on GPUs that support
            only that, else ``fp32``.
    """

    torch: torch.device
    precision: str

    @property
    def name(self) -> str:
        """The name of the GPU, or ``cpu`` with the number of threads."""
        if self.torch.type == "cuda":
            return torch.cuda.get_device_name(self.torch)
        if self.torch.type == "cpu":
            return f"cpu, {number_of(torch.get_num_threads(), 'thread')}"
        return self.torch.type

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the forward pass of a training step runs."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.torch.type, dtype)

    def wait(self) -> None:
        """Wait until the device has finished all its work."""
        if self.torch.type != "cpu":
            torch.accelerator.synchronize(self.torch)

    def peak_memory(self) -> int | None:
        """Peak memory of tensors on a CUDA device since the start, in bytes; None elsewhere."""
        return torch.cuda.max_memory_allocated(self.torch) if self.torch.type == "cuda" else None


def choose(name: str = "auto", precision: str = "auto") -> Device:
    """Find the device called ``name``: ``auto`` takes CUDA, then MPS, then the CPU.

    Several ranks take a separate CUDA device each; where there are none, all take the CPU.

    Raises:
        UsageError: There is no such device or precision.
    """
    device = check(name, precision)
    _try(device)
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "fp16" if device.type == "cuda" else "fp32"
    return Device(torch=device, precision=precision)


def check(name: str, precision: str) -> torch.device:
    """The device that :func:`choose` takes, before it is used: another process may need a GPU for itself.

    Raises:
        UsageError: There is no such device or precision.
    """
    if name == "auto":
        alone = ranks.count() == 1
        mps = alone and torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if ranks.count() > 1:
        name = _device_of_rank(name)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name}", "auto, cpu, cuda, cuda:1 or mps") from error
    if precision not in {"auto", "bf16", "fp16", "fp32"}:
        raise UsageError(f"there is no precision {precision}", "auto, bf16, fp16 or fp32")
    if device.type != "cuda":
        _try(device)
    elif (device.index or 0) >= (there := torch.cuda.device_count()):
        there_are = number_of(there, "CUDA device is there", "CUDA devices are there")
        raise UsageError(f"device {name} cannot be used: {there_are}", "use --device auto")
    return device


def _try(device: torch.device) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UsageError(f"device {device} cannot be used: {reason}", "use --device auto") from error


def _device_of_rank(name: str) -> str:
    """The device of this rank."""
    if name == "cpu":
        return name
    if name != "cuda":
        raise UsageError(f"several processes cannot train on {name}", "--device auto, cuda or cpu")
    number, there = ranks.local_count(), torch.cuda.device_count()
    if number > there:
        fewer = f"--devices {there}, or " if there else ""
        there_are = number_of(there, "CUDA device is there", "CUDA devices are there")
        raise UsageError(f"{there_are} for {number} processes", f"{fewer}--device cpu")
    torch.cuda.set_device(ranks.local_rank())
    return f"cuda:{ranks.local_rank()}"


@cache
def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return _cpu_multiplies_bf16()
    return False


def _cpu_multiplies_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())  # the only place in torch 2.10 and 2.11


_OUT_OF_MEMORY = (
    "can't allocate memory",  # a CPU
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN found no memory to work in
)
"""What errors say where memory ran out, beside torch's own class of them."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any kind of device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
