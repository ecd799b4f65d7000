"""Whether decoding keeps up with a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WAITED_SHARE, WAITED_SECONDS = 0.05, 3.0
"""Decoding keeps up with a training that waits less than either; the first batch is always waited for."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast images were needed, and how fast they were decoded.

    Args:
        images: That were trained on, each view counted.
        training_seconds: That took, waiting included.
        waited_seconds: That training waited for images while the device had nothing else to do.
        decoded: How many images were decoded, for whatever.
        decoding_seconds: That took, summed over the processes.
        processes: That decoded.
    """

    images: int
    training_seconds: float
    waited_seconds: float
    decoded: int
    decoding_seconds: float
    processes: int

    @property
    def needed_per_second(self) -> float:
        """Images a second that training would take if it never waited."""
        return self.images / max(self.training_seconds - self.waited_seconds, 1e-9)

    @property
    def decoded_per_second(self) -> float:
        """Images a second that the processes decode while they do."""
        return self.processes * self.decoded / max(self.decoding_seconds, 1e-9)

    @property
    def keeps_up(self) -> bool:
        """Whether training hardly waited."""
        return self.waited_seconds <= max(WAITED_SHARE * self.training_seconds, WAITED_SECONDS)

    def warning(self) -> str | None:
        """What to know where decoding does not keep up."""
        if self.keeps_up:
            return None
        return (
            f"decoding does not keep up: training waited {self.waited_seconds:.0f} of its "
            f"{self.training_seconds:.0f} s for images (it takes {self.needed_per_second:,.0f} a second, "
            f"{self.processes} processes decode {self.decoded_per_second:,.0f}); more cores, a larger "
            "--cache, smaller files or --max-images would help"
        )

    def as_json(self) -> dict[str, Any]:
        """For a report."""
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
