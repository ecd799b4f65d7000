"""A network together with the normalisation of its input, and what its answers must be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.errors import AnswersError
from bcu_cli.models.preprocessing import BGR

if TYPE_CHECKING:
    from bcu_cli.models.preprocessing import Preprocessing

THE_NETWORK = "the network"
"""How errors call one that has no name."""

_ROUNDING = 0.02
"""Share of the largest logit that another order of summation may change; a thousand times what is usual."""

_NEARLY_ONE = 1e-3

_NO_CLASSIFIER = "bcu works on classifiers that answer each image with one row of logits"


class Classifier(nn.Module):
    """A network behind its normalisation: images in [0, 1] in, logits out.

    The mean and deviation are buffers that are not saved, so that ``network.state_dict()`` holds exactly the
    tensors of the file that the network came from.

    Args:
        network: Normalised images ``[N, C, H, W]`` to logits ``[N, K]``.
        preprocessing: Of the network; only channel order, mean and std are applied here.
        num_classes: K; 0 while it is not known.
        name: How errors call the network.

    Attributes:
        ends_in_softmax: Whether the network answers with probabilities; their logarithms are logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        num_classes: int,
        *,
        name: str = THE_NETWORK,
    ) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.name = name
        self.ends_in_softmax = False
        self.register_buffer("mean", _per_channel(preprocessing.mean), persistent=False)
        self.register_buffer("std", _per_channel(preprocessing.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``float [N, C, H, W]`` in [0, 1] to logits ``[N, K]``.

        Whether they are finite is not looked at here, for which a GPU would have to be waited for.

        Raises:
            AnswersError: The network answers with anything else than N rows of K real floating-point numbers.
        """
        answer = self._logits(self.network(self.normalised(images)), images.shape[0])
        return answer.clamp_min(torch.finfo(answer.dtype).tiny).log() if self.ends_in_softmax else answer

    def normalised(self, images: Tensor) -> Tensor:
        """Images ``float [N, C, H, W]`` in [0, 1] as the network takes them: in its order, mean and scale."""
        return (in_order(images, self.preprocessing.channel_order) - self.mean) / self.std

    def _logits(self, answer: Any, number: int) -> Tensor:
        """The one place that says what an answer is."""
        if isinstance(answer, tuple):  # as GoogLeNet and Inception have it in training, scripted always
            first = answer[0] if answer and (self.training or len(answer) == 1) else answer
            answer = getattr(answer, "logits", first)
        if not isinstance(answer, Tensor):
            raise AnswersError(f"{self.name} returns a {type(answer).__name__}, not logits", _NO_CLASSIFIER)
        if answer.dim() != 2 or answer.shape[0] != number:
            raise AnswersError(
                f"{self.name} returns {list(answer.shape)} for {number} images, not a row of logits for each",
                _NO_CLASSIFIER,
            )
        if not answer.is_floating_point():
            kind = str(answer.dtype).removeprefix("torch.")
            raise AnswersError(f"{self.name} answers with {kind} numbers, not with logits", _NO_CLASSIFIER)
        if self.num_classes and answer.shape[1] != self.num_classes:
            raise AnswersError(
                f"{self.name} returns {answer.shape[1]} logits for an image of {self.num_classes} classes",
                _NO_CLASSIFIER,
            )
        return answer


def are_probabilities(answers: Tensor) -> bool:
    """Whether answers, ``[N, K]``, are what a softmax has made of logits already."""
    return bool(answers.min() >= 0) and bool((answers.sum(1) - 1.0).abs().max() < _NEARLY_ONE)


def in_order(images: Tensor, channel_order: str) -> Tensor:
    """RGB images ``[N, 3, H, W]`` with their channels as ``channel_order`` says; others as they are."""
    return images.flip(1) if channel_order == BGR else images


def refuse_dependence(alone: Tensor, both: Tensor, name: str) -> None:
    """Refuse a network that answers an image otherwise by itself than beside another one.

    Nothing measured of it in batches would hold for the image that its user gives it.

    Args:
        alone: Logits ``[M, K]`` of images, each by itself.
        both: Logits ``[N, K]`` of those images and of others behind them, answered together.
        name: How errors call the network.

    Raises:
        AnswersError: The answers differ by more than rounding, or are not finite.
    """
    if not (alone.isfinite().all() and both.isfinite().all()):
        raise not_finite(name)
    if (alone - both[: len(alone)]).abs().max() > _ROUNDING * both.abs().max():
        raise AnswersError(
            f"{name}: its answers depend on the batch; an image alone has another answer than among others",
            "export it in evaluation mode, with the statistics of its BatchNorm layers",
        )


def name_of(network: nn.Module) -> str:
    """How errors call a network, which need not be a :class:`Classifier`."""
    return str(getattr(network, "name", THE_NETWORK))


def not_finite(name: str) -> AnswersError:
    """The error for a network with NaN or infinite answers."""
    return AnswersError(
        f"{name} answers with NaN or infinite numbers, which tell nothing",
        "its weights or its normalisation are far too large or damaged; get another copy",
    )


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
