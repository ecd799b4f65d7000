"""The parts of a report that all commands share: versions, device, options, files, time, memory."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import sys
import time
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bcu_cli import __version__
from bcu_cli.images.stream import StreamedSet
from bcu_cli.training import ranks
from bcu_cli.training.throughput import measure_peak

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Loaded
    from bcu_cli.training.devices import Device
    from bcu_cli.training.loop import Stage


MOST_NAMED = 1000
"""Most skipped files of a streamed set that a report names; there may be a million."""


class Clock:
    """Measures the seconds of each phase of a run."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to ``phase``."""
        now = time.perf_counter()
        self._phases[phase] = self._phases.get(phase, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase and in total."""
        total = time.perf_counter() - self._started
        return {name: round(value, 3) for name, value in (self._phases | {"total": total}).items()}


def environment(device: Device) -> dict[str, Any]:
    """The versions of packages, and the device."""
    packages = ("torch", "torchvision", "timm", "safetensors", "pillow")
    return {
        "versions": {"bcu": __version__, "python": platform.python_version()}
        | {name: version(name) for name in packages},
        "device": {
            "type": str(device.torch),
            "name": device.name,
            "precision": device.precision,
            "number": ranks.count(),
        },
    }


def peak_memory(device: Device) -> dict[str, int]:
    """Peak memory of the process, and of tensors on a GPU, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    on_device = device.peak_memory()
    return peak if on_device is None else peak | {"device_bytes": on_device}


def training(stages: Sequence[Stage], device: Device) -> list[dict[str, Any]]:
    """The throughput of each stage, relative to the peak speed of the devices, which is measured now."""
    peak = measure_peak(device) * ranks.count()
    return [{"stage": stage.title} | stage.training.throughput().as_json(peak) for stage in stages]


def options(values: Any) -> dict[str, Any]:
    """A dataclass of options as plain values."""
    if not is_dataclass(values) or isinstance(values, type):
        raise TypeError(f"{values!r} holds no options")
    plain: dict[str, Any] = json.loads(json.dumps(asdict(values)))
    return plain


def model(loaded: Loaded) -> dict[str, Any]:
    """A model file, its network, and how the network was identified."""
    checkpoint = loaded.checkpoint
    return {
        "path": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "bytes": checkpoint.size,
        "format": checkpoint.format.value,
        "parts": [str(part) for part in checkpoint.parts],
        "architecture": asdict(loaded.architecture),
        "preprocessing": asdict(loaded.preprocessing),
        "evidence": list(loaded.evidence),
    }


def images(data: ImageSet | StreamedSet, **more: Any) -> dict[str, Any]:
    """A folder of images: the number of used images, and the skipped files."""
    return {
        "path": str(data.root),
        "found": data.found,
        "used": len(data),
        "sha256": fingerprint_of(data),
        "skipped": _skipped(data),
        "hidden": data.hidden.as_json(),
        "scaled": _scaled(data),
        **more,
    }


def streaming(data: ImageSet | StreamedSet, training: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The images at the end of a run: the number kept decoded, and the cost of streaming the others.

    Args:
        data: The images.
        training: The stages, as :func:`training` returns them.
    """
    if not isinstance(data, StreamedSet):
        return {"kept_decoded": len(data), "streamed": 0, "stream": None}
    pace = data.images.pace(
        images=sum(stage["images"] for stage in training), seconds=sum(stage["seconds"] for stage in training)
    )
    return {
        "skipped": _skipped(data),
        "scaled": _scaled(data),
        "kept_decoded": data.images.kept,
        "streamed": len(data) - data.images.kept,
        "stream": pace.as_json() | {"unreadable": len(data.skipped), "sha256_is_of": data.SHA256_IS_OF},
    }


def _skipped(data: ImageSet | StreamedSet) -> list[dict[str, str]]:
    most = MOST_NAMED if isinstance(data, StreamedSet) else None
    return [{"path": str(path), "reason": reason} for path, reason in data.skipped[:most]]


def _scaled(data: ImageSet | StreamedSet) -> list[dict[str, str]]:
    return [{"path": str(path), "how": how} for path, how in data.scaled]


def written(path: Path, sha256: str) -> dict[str, Any]:
    """A file that the command wrote."""
    return {"path": str(path), "sha256": sha256, "bytes": path.stat().st_size}


def fingerprint_of(data: ImageSet | StreamedSet) -> str:
    """SHA-256 over the decoded images in their order and their labels; a streamed set has its own."""
    if isinstance(data, StreamedSet):
        return data.sha256
    digest = hashlib.sha256(data.images.contiguous().numpy().data)
    if data.labels is not None:
        digest.update(data.labels.contiguous().numpy().data)
    return digest.hexdigest()


def fingerprint(*parts: Any) -> str:
    """SHA-256 over plain values that determine a run, and over the version of bcu."""
    return hashlib.sha256(json.dumps([__version__, *parts], sort_keys=True).encode()).hexdigest()
