"""The names of the built-in networks; a separate module, so that listing them needs no torch."""

from __future__ import annotations

import re

_NAMES = (
    *("preact_resnet18", "preact_resnet18_no_last_bn"),
    *("resnet18_cifar", "resnet18_cifar_w16", "resnet34_cifar", "resnet50_cifar"),
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    *(f"resnet{depth}_padded{end}" for depth in (20, 32, 44, 56, 110) for end in ("", "_behind")),
    *("vgg11_bn_cifar", "vgg13_bn_cifar", "vgg16_bn_cifar", "vgg19_bn_cifar"),
    *("wrn16_1", "wrn16_2", "wrn28_10", "wrn40_2"),
)
#: The built-in networks, with the input size (C, H, W) they are made for; all take other sizes too.
BUILTIN_ARCHITECTURES: dict[str, tuple[int, int, int]] = dict.fromkeys(sorted(_NAMES), (3, 32, 32))
_WIDTH = re.compile(r"(?P<base>\w+)_w(?P<width>[1-9]\d{0,3})", re.ASCII)


def builtin_names() -> tuple[str, ...]:
    """The names of the built-in networks, in alphabetical order."""
    return tuple(sorted(BUILTIN_ARCHITECTURES))


def split_width(name: str) -> tuple[str, int | None]:
    """A built-in name and the width of its first convolution: ``resnet20_w32`` is ``resnet20`` and 32.

    The width is None where the name says none, or where the rest is no built-in network.
    """
    form = _WIDTH.fullmatch(name)
    if form is None or form["base"] not in BUILTIN_ARCHITECTURES:
        return name, None
    return form["base"], int(form["width"])


def is_builtin(name: str) -> bool:
    """Whether a name is that of a built-in network, at its usual width or another one."""
    return split_width(name)[0] in BUILTIN_ARCHITECTURES
