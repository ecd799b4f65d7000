"""A base class for modes that observe the operators that a network runs."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """A ``TorchDispatchMode`` that does not import torch.compile, which takes a second.

    By default torch imports it at the first operation, only to exclude the mode from compilation.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
