"""A limit on the size of a network while it is built."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from bcu_cli.errors import ArchitectureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn


class TooLargeError(ArchitectureError):
    """A network has more tensors, or more values in them, than its file can hold."""


@contextlib.contextmanager
def no_larger(name: str, *, tensors: int, values: int) -> Iterator[None]:
    """Limit the size of a network that is built in the context; other threads are not limited.

    Args:
        name: Name of the network in the error.
        tensors: Largest number of parameters and buffers.
        values: Largest number of values in all of them.

    Raises:
        TooLargeError: The network exceeds a limit; raised within the context.
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
