"""The last feature map of each resolution in a network, found by the data that flows through it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError
from bcu_cli.models.hooks import watching

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@torch.no_grad()
def last_of_each_resolution(network: nn.Module, example: Tensor, most: int) -> list[str]:
    """The names of the modules that return the last feature map of each resolution, from shallow to deep.

    In a ResNet they are its stages, in a VGG the activations before the poolings. Modules that are used more
    than once are skipped, and so are maps of a single pixel.

    Args:
        network: The network, in eval mode.
        example: A batch of inputs.
        most: Most resolutions to return, counted from the last.

    Raises:
        ArchitectureError: There are no feature maps.
    """
    calls: dict[str, int] = {}
    last: dict[tuple[int, ...], list[str]] = {}

    def note(name: str, _: Any, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        if isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
            last.setdefault(tuple(output.shape[2:]), []).append(name)

    with watching(((module, name) for name, module in network.named_modules()), note):
        network(example)
    once = [[name for name in names if calls[name] == 1] for names in last.values()]
    found = [names[-1] for names in once if names]
    if not found:
        raise ArchitectureError(
            "the network has no feature maps to attend to", "it is not convolutional; use --method bcu or ft"
        )
    return found[-most:]


@contextmanager
def recorded(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The latest output of each named module, by name, while the context lasts."""
    maps: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    chosen = ((modules[name], name) for name in names)
    with watching(chosen, lambda name, _, output: maps.update({name: output})):
        yield maps
