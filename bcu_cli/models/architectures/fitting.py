"""Checks whether tensors fit a network, and copies them into it."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError
from bcu_cli.models.architectures.index import Candidate, Shapes, compared_shapes, counted
from bcu_cli.models.configs.transformers_config import is_config
from bcu_cli.models.limits import no_larger
from bcu_cli.models.registry import blueprint, is_described
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Placeholder for the number of classes: a prime that is the width of no layer.
_CLASSES = 7919
_SHOWN = 3
_SPARE_TENSORS, _SPARE_VALUES = 1_000, 10**9
"""Allowance beyond the file's content, for buffers that are not stored and the layer of 7919 classes."""


def template(name: str, input_size: tuple[int, int, int] | None, shapes: Shapes) -> Shapes:
    """The shapes of an architecture's tensors, with 7919 in place of the number of classes.

    A ``config.json`` or options could describe a network of any size. One that needs far more than the file
    holds is refused.

    Args:
        name: Name of the architecture.
        input_size: C, H, W; None for the architecture's default.
        shapes: Shapes of the tensors in the file.

    Raises:
        ArchitectureError: The network cannot be built, or is too large for the file.
    """
    if not is_described(name):
        network = blueprint(name, num_classes=_CLASSES, input_size=input_size)
    else:
        held = sum(math.prod(shape) for shape in shapes.values())
        with no_larger(name, tensors=4 * len(shapes) + _SPARE_TENSORS, values=2 * held + _SPARE_VALUES):
            network = blueprint(name, num_classes=_CLASSES, input_size=input_size)
    _adopt_names(name, network, shapes)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def _adopt_names(name: str, network: nn.Module, shapes: Shapes) -> None:
    """Give a network of transformers, whose modules may have other names, the tensor names of the file."""
    if is_config(name):
        from bcu_cli.models.configs.transformers_names import adopt_names

        adopt_names(network, shapes)


def fit_template(name: str, shapes: Shapes, input_size: tuple[int, int, int] | None) -> Candidate | None:
    """Build an architecture, and match its tensors with those of a file.

    Returns:
        The candidate, whose ``num_classes`` is 0 where no tensor depends on it; None if the tensors do not
        fit.
    """
    channels = 3 if input_size is None else input_size[0]
    expected = template(name, input_size, shapes)
    num_classes = _number_of_classes(shapes, expected)
    if differences(shapes, _filled(expected, num_classes)):
        return None
    return Candidate(
        name=name, structure="", num_classes=num_classes, in_channels=channels, preprocessing=None
    )


def filled_template(candidate: Candidate, shapes: Shapes) -> Shapes:
    """The shapes of a candidate's tensors, in the order of their registration, with its number of classes.

    Args:
        candidate: The candidate.
        shapes: Shapes of the tensors in the file, which limit the size of the network.

    Raises:
        ArchitectureError: The network cannot be built, or is too large for the file.
    """
    expected = template(candidate.name, build_size(candidate), shapes)
    return _filled(expected, candidate.num_classes)


def build_size(candidate: Candidate) -> tuple[int, int, int] | None:
    """The input size with which a candidate is built; None for three channels, the library's default."""
    if candidate.in_channels == 3:
        return None
    sides = candidate.preprocessing.input_size[1:] if candidate.preprocessing is not None else (32, 32)
    return (candidate.in_channels, *sides)


def class_side(name: str, shapes: Shapes, input_size: tuple[int, int, int]) -> int | None:
    """The number of classes with which an architecture has these shapes in any order; None if with none."""
    expected = template(name, input_size, shapes)
    own, theirs = (Counter(shape for _, shape in compared_shapes(one)) for one in (shapes, expected))
    missing = own - theirs
    classes = {
        shape[open_shape.index(_CLASSES)]
        for open_shape in theirs
        if _CLASSES in open_shape
        for shape in missing
        if len(shape) == len(open_shape)
    }
    for count in classes:
        filled = Counter(shape for _, shape in compared_shapes(_filled(expected, count)))
        if filled == own:
            return count
    return None


def mismatch(
    name: str, shapes: Shapes, input_size: tuple[int, int, int] | None, what: str
) -> ArchitectureError:
    """The error for a file ``what`` whose tensors, which it lists, do not fit the architecture ``name``."""
    expected = template(name, input_size, shapes)
    found = differences(shapes, _filled(expected, _number_of_classes(shapes, expected)))
    return ArchitectureError(
        f"{what} does not fit {name}: {'; '.join(found)}",
        "leave --arch out to have it found, or give --arch NAME or --arch FILE.py:FUNCTION",
    )


def _number_of_classes(shapes: Shapes, expected: Shapes) -> int:
    for name, shape in expected.items():
        if _CLASSES in shape and len(shapes.get(name, ())) == len(shape):
            return shapes[name][shape.index(_CLASSES)]
    return 0


def _filled(expected: Shapes, num_classes: int) -> Shapes:
    return {
        name: tuple(num_classes if side == _CLASSES else side for side in shape)
        for name, shape in expected.items()
    }


def differences(shapes: Shapes, expected: Shapes) -> list[str]:
    """Missing tensors, extra ones and those of another shape: a phrase for each, with the first few names."""
    missing = [name for name in expected if name not in shapes and counted(name)]
    extra = [name for name in shapes if name not in expected and counted(name)]
    other = [
        f"{name} is {list(shapes[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and counted(name) and shapes[name] != shape
    ]
    parts = (("missing ", missing), ("unexpected ", extra), ("", other))
    return [prefix + _first(names) for prefix, names in parts if names]


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def fill(network: nn.Module, tensors: Mapping[str, Tensor], name: str, what: str) -> None:
    """Copy all ``tensors`` into ``network``, converted to its types; only step counters may be missing.

    A counter that overflowed in half precision is not copied.

    Raises:
        ArchitectureError: Names or shapes differ, or whole numbers stand where the network has weights.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    _adopt_names(name, network, shapes)
    state = network.state_dict()
    found = differences(shapes, {key: tuple(tensor.shape) for key, tensor in state.items()})
    if found:
        raise ArchitectureError(
            f"{what} does not fit {name}: {'; '.join(found)}", "give --arch NAME or --arch FILE.py:FUNCTION"
        )
    whole = [key for key, target in state.items() if _lacks_scale(key, tensors.get(key), target)]
    if whole:
        kind = str(tensors[whole[0]].dtype).removeprefix("torch.")
        raise ArchitectureError(
            f"{what}: tensor {whole[0]} holds {kind}, where {name} has weights: its scale is missing",
            "get the weights before they were quantised",
        )
    with torch.no_grad():
        for key, target in state.items():
            if key in tensors and tensors[key].shape == target.shape and not overflowed(key, tensors[key]):
                target.copy_(tensors[key])


def _lacks_scale(name: str, tensor: Tensor | None, target: Tensor) -> bool:
    """Whether small whole numbers stand where a network has weights, as in a quantised file."""
    small = tensor is not None and tensor.dtype in (torch.int8, torch.uint8, torch.int16)
    return small and counted(name) and target.is_floating_point()


def number_not_finite(tensor: Tensor) -> int:
    """Number of values of a tensor that are NaN or infinite."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    known = tensor.float() if tensor.element_size() == 1 else tensor  # torch has no isfinite for 8 bits
    return tensor.numel() - int(known.isfinite().sum())


def overflowed(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a step counter beyond the range of its type, which is harmless."""
    return not counted(name) and number_not_finite(tensor) > 0


def refuse_broken(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        ArchitectureError: A tensor has such values, or is of a type without a sign; the message names it.
    """
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float8_e8m0fnu:
            raise ArchitectureError(
                f"{what}: tensor {name} is float8_e8m0fnu, which holds scales without a sign, not weights",
                "get the weights before they were quantised",
            )
        if counted(name) and (broken := number_not_finite(tensor)):
            raise ArchitectureError(
                f"{what}: NaN or Inf in tensor {name} ({number_of(broken, 'value')})",
                "the file is damaged or its training diverged; get another copy",
            )
