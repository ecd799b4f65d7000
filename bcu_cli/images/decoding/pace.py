"""Measures whether decoding keeps up with a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bcu_cli.words import number_of

WAITED_SHARE, WAITED_SECONDS = 0.05, 3.0
"""Decoding keeps up if training waits less than this share of its time, or less than these seconds.

The first batch always has to be waited for."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Throughput of a training and of the decoding of its images.

    Args:
        images: Number of images trained on; each view counts.
        training_seconds: Duration of the training in seconds, waiting included.
        waited_seconds: Seconds that training waited for images while the device was idle.
        decoded: Number of images decoded, for training and anything else.
        decoding_seconds: Seconds of decoding, summed over the processes.
        processes: Number of decoding processes.
    """

    images: int
    training_seconds: float
    waited_seconds: float
    decoded: int
    decoding_seconds: float
    processes: int

    @property
    def needed_per_second(self) -> float:
        """Images per second that training would take if it never waited."""
        return self.images / max(self.training_seconds - self.waited_seconds, 1e-9)

    @property
    def decoded_per_second(self) -> float:
        """Images per second that the processes decode while they are busy."""
        return self.processes * self.decoded / max(self.decoding_seconds, 1e-9)

    @property
    def keeps_up(self) -> bool:
        """Whether training waited less than one of the limits."""
        return self.waited_seconds <= max(WAITED_SHARE * self.training_seconds, WAITED_SECONDS)

    def warning(self) -> str | None:
        """A warning for the user if decoding does not keep up; else None."""
        if self.keeps_up:
            return None
        decoding = number_of(self.processes, "process decodes", "processes decode")
        return (
            f"decoding does not keep up: training waited {self.waited_seconds:.0f} of its "
            f"{self.training_seconds:.0f} s for images (it takes {self.needed_per_second:,.0f} a second, "
            f"{decoding} {self.decoded_per_second:,.0f}); more cores, a larger "
            "--cache, smaller files or --max-images would help"
        )

    def as_json(self) -> dict[str, Any]:
        """The measures as plain values, for a report."""
        return {
            "keeps_up": self.keeps_up,
            "warning": self.warning(),
            "training_seconds": round(self.training_seconds, 3),
            "waited_seconds": round(self.waited_seconds, 3),
            "needed_per_second": round(self.needed_per_second, 1),
            "decoded_per_second": round(self.decoded_per_second, 1),
            "decoded": self.decoded,
            "processes": self.processes,
        }
