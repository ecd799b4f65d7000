"""Watching what flows through a network, by hooks that are removed again."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

K = TypeVar("K")


@contextmanager
def watching(modules: Iterable[tuple[nn.Module, K]], note: Callable[[K, Any, Any], object]) -> Iterator[None]:
    """Call ``note`` with the key, the inputs and the output of every module that runs in the context.

    Args:
        modules: The modules, each with its key.
        note: Takes the key, the tuple of inputs, and the output.
    """
    with ExitStack() as hooks:
        for module, key in modules:
            hooks.enter_context(module.register_forward_hook(partial(_call, note, key)))
        yield


def _call(note: Callable[[K, Any, Any], object], key: K, _: nn.Module, inputs: Any, output: Any) -> None:
    note(key, inputs, output)
