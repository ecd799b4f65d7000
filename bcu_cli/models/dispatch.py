"""What looks on as a network computes, operation by operation."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """torch's ``TorchDispatchMode`` without torch.compile, whose import takes a second.

    torch imports it at a mode's first operation, only to tell it to leave the mode alone.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
