"""The layer that computes a network's logits, found by the values that flow through it, not by names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bcu_cli.models.architectures.dispatch import DispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bcu_cli.models.classifier import Classifier

_EXAMPLES = 2
_TOLERANCE = 1e-3
"""Most relative difference between the logits and the outputs of the last layer."""


@dataclass(frozen=True, kw_only=True)
class LastLayer:
    """The weights of a last layer.

    Attributes:
        weight: A row for each class, float32 ``[K, D]`` on the CPU.
        bias: Float32 ``[K]`` on the CPU; None where there is none.
    """

    weight: Tensor
    bias: Tensor | None


class _Products(DispatchMode):
    """Notes each product of K outputs with a matrix, and each convolution by 1x1 kernels.

    Args:
        outputs: K.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs = outputs
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        found = self._rows(func, args, kwargs or {})
        if found is not None and found[0].shape[0] == self.outputs:
            self.seen.append((result.detach(), *found))
        return result

    @staticmethod
    def _rows(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor | None] | None:
        """The matrix of a product, ``[K, D]``, and what is added to it."""
        aten = torch.ops.aten
        if func is aten.addmm.default and kwargs.get("alpha", 1) == kwargs.get("beta", 1) == 1:
            return args[2].t(), args[0]
        if func is aten.mm.default:
            return args[1].t(), None
        if func is aten.linear.default:
            return args[1], args[2] if len(args) > 2 else None
        if func is aten.convolution.default and args[1].dim() == 4 and args[1].shape[2:] == (1, 1):
            return args[1].flatten(1), args[2]
        return None


@torch.no_grad()
def find_last_layer(model: Classifier) -> LastLayer | None:
    """The layer whose outputs are the logits, up to a factor and a constant for each image, or None.

    Linear layers, 1x1 convolutions before or after pooling, and the products of embedded graphs are found.

    Args:
        model: The classifier, in eval mode.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_EXAMPLES, *model.preprocessing.input_size, generator=generator).to(model.mean.device)
    with _Products(model.num_classes) as products:
        logits = model(images)
    for output, weight, bias in reversed(products.seen):
        pooled = output.mean((2, 3)) if output.dim() == 4 else output
        if pooled.shape == logits.shape and _same(pooled, logits):
            added = bias if bias is not None and bias.shape == (model.num_classes,) else None
            return LastLayer(
                weight=weight.detach().float().cpu(),
                bias=None if added is None else added.detach().float().cpu(),
            )
    return None


def _same(outputs: Tensor, logits: Tensor) -> bool:
    """Whether outputs equal the logits but for a constant for each image, and one positive factor."""
    centred = [each.double() - each.double().mean(1, keepdim=True) for each in (outputs, logits)]
    one, other = (each / each.norm() for each in centred)
    return bool((one - other).norm() < _TOLERANCE)  # False of NaN
