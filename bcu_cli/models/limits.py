"""An end to networks that are larger than the file that they are said to be in."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from bcu_cli.errors import ArchitectureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn


class TooLargeError(ArchitectureError):
    """A network that has more tensors, or more values in them, than it can have."""


@contextlib.contextmanager
def no_larger(name: str, *, tensors: int, values: int) -> Iterator[None]:
    """Stop the making of a network as soon as it has more than so much; other threads make theirs freely.

    Args:
        name: How the error calls the network.
        tensors: Number of parameters and buffers that it may have.
        values: Number of values in them together.

    Raises:
        TooLargeError: Within the context: it has more.
    """
    from torch.nn.modules import module as hooks

    thread, left = threading.get_ident(), [tensors, values]

    def count(module: nn.Module, key: str, tensor: Tensor | None) -> None:  # noqa: ARG001 - what a hook is given
        if tensor is None or threading.get_ident() != thread:
            return
        left[0] -= 1
        left[1] -= tensor.numel()
        if min(left) < 0:
            raise TooLargeError(
                f"{name} describes a network that is far larger than what the file holds",
                "get the configuration from the model's publisher again, or give --arch NAME",
            )

    handles = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
