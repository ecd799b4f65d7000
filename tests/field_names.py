"""State dicts under the tensor names that are usual in the field, made of the package's own networks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Rules = tuple[tuple[str, str], ...]

_CLASSIFIER: Rules = ((r"^fc\.", "linear."),)
#: Regular expressions that rename our tensors, by architecture.
RULES: dict[str, Rules] = {
    "resnet18_cifar": (*_CLASSIFIER, (r"downsample", "shortcut")),
    "resnet34_cifar": (*_CLASSIFIER, (r"downsample", "shortcut")),
    "resnet50_cifar": (*_CLASSIFIER, (r"downsample", "shortcut")),
    "resnet20_padded": _CLASSIFIER,
    "resnet20_padded_behind": _CLASSIFIER,
    "preact_resnet18": (*_CLASSIFIER, (r"shortcut\.", "shortcut.0.")),
    "preact_resnet18_no_last_bn": (*_CLASSIFIER, (r"shortcut\.", "shortcut.0.")),
    "wrn16_1": (
        (r"^bn\.", "bn1."),
        (r"^layer(\d)\.", r"block\1.layer."),
        (r"shortcut\.", "convShortcut."),
    ),
    "vgg13_bn_cifar": ((r"^features\.", "conv_layers."),),
}


def renamed(state: dict[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """The state dict with each rule applied to its names, in the same order."""
    names = {}
    for name in state:
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        names[name] = new
    return {names[name]: tensor for name, tensor in state.items()}


def shortcut_first(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict as networks write it that register the shortcut of a block before its convolutions."""

    def place(name: str) -> tuple[str, int]:
        found = re.match(r"(.*layer\d\.\d+\.)(.*)", name)
        if not found:
            return "", 0
        return found[1], 0 if "shortcut" in found[2] or "downsample" in found[2] else 1

    order: dict[str, int] = {}
    for name in state:
        order.setdefault(place(name)[0] or name, len(order))
    return dict(
        sorted(state.items(), key=lambda item: (order[place(item[0])[0] or item[0]], place(item[0])[1]))
    )


def numbered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with names that say nothing: ``t0``, ``t1``, …, in the same order."""
    return {f"t{i}": tensor for i, tensor in enumerate(state.values())}
