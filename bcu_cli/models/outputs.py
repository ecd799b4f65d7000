"""What a network returns: which of several outputs are the logits, and what its last operation makes of them.

Networks of users, TorchScript, ONNX and ``torch.export`` files are alike here: all of them run operator by
operator in torch, whose record for gradients names the last operation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bcu_cli.errors import AnswersError, ArchitectureError

if TYPE_CHECKING:
    from torch import nn

_NAMES = ("logits", "out")
"""Names under which networks return their logits beside other outputs."""
_NEARLY_ONE = 1e-3
_SIGMOID, _SOFTMAX = "SigmoidBackward0", "SoftmaxBackward0"
_RESHAPING = "Cat Clone Expand Reshape ReshapeAlias Select Slice Squeeze ToCopy Unsqueeze View"
"""Operations that change no value, in torch's record for gradients."""
_TWO_CLASSES = (
    "bcu needs a classifier with two or more outputs, or one that ends in a sigmoid for two classes"
)


class Ending(StrEnum):
    """What a network ends in, which decides how its output becomes logits."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    LOG_SOFTMAX = "log-softmax"
    SIGMOID = "sigmoid"

    @property
    def note(self) -> str:
        """A sentence for the report; empty where the output is taken as it is."""
        return _NOTES.get(self, "")


_NOTES = {
    Ending.SOFTMAX: "it answers with probabilities, whose logarithms are taken for logits",
    Ending.LOG_SOFTMAX: "it answers with logarithms of probabilities, which are taken for logits",
    Ending.SIGMOID: "its one output is a sigmoid, taken for the probability of class 1 of two classes",
}


def logits_of(answer: Any, number: int, num_classes: int, name: str) -> tuple[Any, str]:
    """Choose the logits among the outputs of a network.

    A tensor is taken as it is, and one value per image as ``[N, 1]``. Of several outputs, that with the name
    ``logits`` or ``out`` is taken, else the first with a row for each image.

    Args:
        answer: The output: a tensor, a tuple, a list, a mapping, a dataclass or an object with ``logits``.
        number: N, the number of images.
        num_classes: Number of columns of the logits; 0 while it is not known.
        name: Name of the network in errors.

    Returns:
        The logits, or the answer where nothing in it can be logits; and a sentence on the choice, which is
        empty where there was none.

    Raises:
        AnswersError: Outputs of several widths could be the logits.
    """
    if isinstance(answer, Tensor):
        is_flat = answer.dim() < 2 and answer.numel() == number
        return (answer.reshape(number, 1) if is_flat else answer), ""
    parts = _parts(answer)
    rows = {key: part for key, part in parts.items() if _are_rows(part, number)}
    if num_classes:
        rows = {key: part for key, part in rows.items() if part.shape[1] == num_classes}
    chosen = next((key for key in (*_NAMES, *rows) if key in rows), None)
    if chosen is None:
        return answer, ""
    if chosen not in _NAMES and len({part.shape[1] for part in rows.values()}) > 1:
        listed = " and ".join(f"{key} ({part.shape[1]} values)" for key, part in rows.items())
        raise AnswersError(
            f"{name} returns {len(parts)} outputs for an image, of which {listed} could be its logits",
            "let it return the logits alone, or in a dictionary under 'logits'",
        )
    return rows[chosen], f"of its {len(parts)} outputs, {chosen} is taken" if len(parts) > 1 else ""


def _parts(answer: Any) -> dict[str, Any]:
    """The outputs of a network by name or place."""
    if isinstance(answer, Mapping):
        return {str(name): part for name, part in answer.items()}
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        return dict(answer._asdict())
    if dataclasses.is_dataclass(answer):
        return {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    if isinstance(answer, tuple | list):
        return {f"number {place}": part for place, part in enumerate(answer, 1)}
    return {name: getattr(answer, name) for name in _NAMES if hasattr(answer, name)}


def _are_rows(part: Any, number: int) -> bool:
    return (
        isinstance(part, Tensor) and part.dim() == 2 and part.shape[0] == number and part.is_floating_point()
    )


def are_probabilities(answers: Tensor) -> bool:
    """Whether answers, ``[N, K]``, are probabilities, as a softmax returns them."""
    return bool(answers.min() >= 0) and bool((answers.sum(1) - 1.0).abs().max() < _NEARLY_ONE)


def find_ending(network: nn.Module, images: Tensor, name: str) -> tuple[Ending, str]:
    """Find out what a network ends in, by its answers and by its last operation.

    Args:
        network: Maps normalised images to logits or to what it makes of them; in evaluation mode.
        images: A few normalised images ``float [N, C, H, W]``, on which it answers with rows of numbers.
        name: Name of the network in errors.

    Returns:
        The ending, and a sentence on which of several outputs was taken.

    Raises:
        ArchitectureError: It has one output that is no sigmoid, or a softmax over one class.
        AnswersError: It has a sigmoid for each of several classes.
    """
    with torch.no_grad():
        answer, choice = logits_of(network(images), len(images), 0, name)
    last, values = _last_operation(network, images[:1], name), answer.float()
    if values.shape[1] < 2:
        return _ending_of_one(last, values.shape[1], name), choice
    if not values.isfinite().all():
        return Ending.LOGITS, choice
    if are_probabilities(values):
        return Ending.SOFTMAX, choice
    if bool(values.max() <= 0) and bool(values.logsumexp(1).abs().max() < _NEARLY_ONE):
        return Ending.LOG_SOFTMAX, choice
    if last == _SIGMOID:
        raise AnswersError(
            f"{name} ends in a sigmoid for each of {values.shape[1]} classes: an image may be of several",
            "bcu needs one class for each image; if its classes exclude each other, leave the sigmoid out",
        )
    return Ending.LOGITS, choice


def _ending_of_one(last: str, outputs: int, name: str) -> Ending:
    """The ending of a network with at most one output."""
    if last == _SIGMOID:
        return Ending.SIGMOID
    if last == _SOFTMAX:
        raise ArchitectureError(
            f"{name} has one class, whose softmax is always 1: there is nothing to tell apart", _TWO_CLASSES
        )
    raise ArchitectureError(
        f"{name} has {'one output' if outputs else 'no output'} that is no sigmoid: it is a regression, or "
        "does not say that it tells two classes apart",
        _TWO_CLASSES,
    )


def _last_operation(network: nn.Module, images: Tensor, name: str) -> str:
    """Name of the last operation that changed values, as torch records it; empty without a record."""
    try:
        with torch.enable_grad():  # a clone, which operators may write to
            answer, _ = logits_of(network(images.detach().requires_grad_().clone()), len(images), 0, name)
    except Exception:  # code of any kind that runs without gradients only
        return ""
    node: Any = answer.grad_fn
    while node is not None and node.name().partition("Backward")[0] in _RESHAPING.split():
        node = node.next_functions[0][0]
    return node.name() if node is not None else ""


def to_logits(answer: Tensor, ending: Ending) -> Tensor:
    """Convert the output of a network, ``[N, K]``, to logits ``[N, K]``; one sigmoid to two logits [0, z]."""
    if ending is Ending.SOFTMAX:
        return answer.clamp_min(torch.finfo(answer.dtype).tiny).log()
    if ending is Ending.SIGMOID:
        limits = torch.finfo(answer.dtype)
        odds = answer.clamp(limits.tiny, 1 - limits.eps / 2).logit()
        return torch.cat([torch.zeros_like(odds), odds], dim=1)
    return answer
