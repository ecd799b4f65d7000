"""The names of the built-in networks; a separate module, so that listing them needs no torch."""

from __future__ import annotations

import re

_TENSORS = """
    densenet121_cifar:602 densenet121_cifar_appended:602 densenet_bc100:497 dla34_cifar:217
    dla34_simple_cifar:197 efficientnet_b0_cifar:311 googlenet_cifar:386 mobilenetv2_cifar:287
    preact_resnet18:90 preact_resnet18_no_last_bn:86 resnet110:557 resnet110_padded:547
    resnet110_padded_behind:547 resnet14:77 resnet18_cifar:102 resnet18_cifar_w16:102 resnet20:107
    resnet20_padded:97 resnet20_padded_behind:97 resnet32:167 resnet32_padded:157
    resnet32_padded_behind:157 resnet34_cifar:182 resnet44:227 resnet44_padded:217
    resnet44_padded_behind:217 resnet50_cifar:267 resnet56:287 resnet56_padded:277
    resnet56_padded_behind:277 resnet8:47 senet18_cifar:122 shufflenetv2_x0_5_cifar:282
    shufflenetv2_x1_5_cifar:282 shufflenetv2_x1_cifar:282 shufflenetv2_x2_cifar:282 vgg11_bn_cifar:50
    vgg13_bn_cifar:62 vgg16_bn_cifar:80 vgg19_bn_cifar:98 wrn16_1:69 wrn16_2:70 wrn28_10:130 wrn40_2:190
"""
#: Number of tensors of each built-in network, without scalars.
TENSORS = {name: int(count) for name, count in (pair.split(":") for pair in _TENSORS.split())}
#: The built-in networks, with the input size (C, H, W) they are made for; all take other sizes too.
BUILTIN_ARCHITECTURES: dict[str, tuple[int, int, int]] = dict.fromkeys(TENSORS, (3, 32, 32))
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
