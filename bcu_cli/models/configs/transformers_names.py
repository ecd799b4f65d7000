"""Tensor names of transformers' files, under which bcu reads, shows and writes the tensors.

transformers 5 gives the modules of older architectures new names, and renames the tensors of a file while it
loads them. A network that bcu builds takes the names of its file: ``state_dict()`` gives them, and
``load_state_dict()`` takes them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

    Names = Mapping[str, str]
    Tensors = Mapping[str, Tensor]

_COMPUTED = frozenset({"relative_position_index", "relative_coords_table", "position_ids"})
"""Last parts of the names of tensors in old files that transformers computes instead of loading them."""


def adopt_names(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Let a network of transformers use the tensor names of a file in its state dict.

    Tensors of the file that transformers computes itself have no effect on the network. Its state dict holds
    them, so that a file that is written has them too. Names that transformers does not know change nothing.

    Args:
        network: A network of transformers with the names of the installed version.
        shapes: Shape of each tensor of the file by its name.
    """
    own = network.state_dict()
    if own.keys() == shapes.keys():
        return
    names = _file_names(network, own, shapes)
    device = next(iter(own.values())).device
    computed = {
        name: torch.zeros(shape, device=device)
        for name, shape in shapes.items()
        if name.rpartition(".")[2] in _COMPUTED and name not in own and name not in names.values()
    }
    hooked: Any = network
    hooked.register_state_dict_post_hook(partial(_show, names, computed))
    hooked.register_load_state_dict_pre_hook(partial(_take, names, computed))


def _file_names(network: Any, own: dict[str, Tensor], names: Iterable[str]) -> dict[str, str]:
    """The name in the file for each tensor of the network that has another name there."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # transformers 4 gives its modules the names in the files
        return {}
    changes = [
        change for change in get_model_conversion_mapping(network) if isinstance(change, WeightRenaming)
    ]
    found: dict[str, str] = {}
    for name in names:
        renamed, _ = rename_source_key(name, changes, [], network.base_model_prefix, own)
        if renamed not in own and name in own:
            renamed = name
        if renamed in own:
            found.setdefault(renamed, name)
    return {renamed: name for renamed, name in found.items() if renamed != name}


def _show(
    names: Names, computed: Tensors, _: nn.Module, state: dict[str, Any], prefix: str, *__: Any
) -> None:
    """Rename the entries of a state dict to the names of the file."""
    renamed = {prefix + name: state.pop(prefix + own) for own, name in names.items()}
    state.update(renamed)
    state.update({prefix + name: tensor for name, tensor in computed.items()})


def _take(
    names: Names, computed: Tensors, _: nn.Module, state: dict[str, Any], prefix: str, *__: Any
) -> None:
    """Rename the entries of a state dict from the names of the file to the network's own."""
    found = {own: state.pop(prefix + name) for own, name in names.items() if prefix + name in state}
    state.update({prefix + own: tensor for own, tensor in found.items()})
    for name in computed:
        state.pop(prefix + name, None)
