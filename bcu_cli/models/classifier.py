"""A network with the normalisation of its input, and checks of its output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.errors import AnswersError, BcuError, TrainingError
from bcu_cli.models.outputs import Ending, logits_of, to_logits
from bcu_cli.models.preprocessing import BGR
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from bcu_cli.models.preprocessing import Preprocessing

THE_NETWORK = "the network"
"""Name of a nameless network in errors."""

_ROUNDING = 0.02
"""Share of the largest logit that rounding may change; a thousand times the usual share."""

_NO_CLASSIFIER = "bcu works on classifiers that answer each image with one row of logits"


class Classifier(nn.Module):
    """A network behind its normalisation: maps images in [0, 1] to logits.

    The mean and deviation are buffers that are not saved. So ``network.state_dict()`` holds exactly the
    tensors of the file that the network came from.

    Args:
        network: Maps normalised images ``[N, C, H, W]`` to logits ``[N, K]``.
        preprocessing: Preprocessing of the images; only channel order, mean and std are applied here.
        num_classes: K; 0 while it is not known.
        name: Name of the network in errors.

    Attributes:
        ending: What the network ends in; its output is converted to logits.
        trained: Whether it is or was trained in this run, so that its weights may be at fault, not the file.
        channels_last: Whether the network takes images laid out channels last, which makes convolutions fast.
            Code that flattens feature maps by ``view`` does not. :func:`try_channels_last` finds out.
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
        self.ending = Ending.LOGITS
        self.trained = False
        self.channels_last = False
        self.register_buffer("mean", _per_channel(preprocessing.mean), persistent=False)
        self.register_buffer("std", _per_channel(preprocessing.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``float [N, C, H, W]`` in [0, 1] to logits ``[N, K]``.

        Whether they are finite is not checked here, which would synchronise with a GPU.

        Raises:
            AnswersError: The network returns anything else than N rows of K real floating-point numbers.
        """
        return self._logits(self.network(self.normalised(images)), images.shape[0])

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise images ``float [N, C, H, W]`` in [0, 1], and reorder their channels, for the network."""
        images = (in_order(images, self.preprocessing.channel_order) - self.mean) / self.std
        return images if self.channels_last else images.contiguous()

    def _logits(self, answer: Any, number: int) -> Tensor:
        """Check the output of the network, and take the logits from it."""
        columns = 1 if self.ending is Ending.SIGMOID else self.num_classes
        answer, _ = logits_of(answer, number, columns, self.name)
        if not isinstance(answer, Tensor):
            raise AnswersError(f"{self.name} returns a {type(answer).__name__}, not logits", _NO_CLASSIFIER)
        if answer.dim() != 2 or answer.shape[0] != number:
            raise AnswersError(
                f"{self.name} returns {list(answer.shape)} for {number_of(number, 'image')}, "
                "not a row of logits for each",
                _NO_CLASSIFIER,
            )
        if not answer.is_floating_point():
            kind = str(answer.dtype).removeprefix("torch.")
            raise AnswersError(f"{self.name} answers with {kind} numbers, not with logits", _NO_CLASSIFIER)
        if columns and answer.shape[1] != columns:
            raise AnswersError(
                f"{self.name} returns {answer.shape[1]} logits for an image of {self.num_classes} classes",
                _NO_CLASSIFIER,
            )
        return to_logits(answer, self.ending)


def place(model: nn.Module, device: torch.device) -> None:
    """Move a module to a device; a classifier's weights are laid out channels last where it takes that."""
    model.to(device)
    if isinstance(model, Classifier) and model.channels_last:
        _lay_out(model, torch.channels_last)


def try_channels_last(model: Classifier, images: Tensor) -> None:
    """Set ``model.channels_last`` by a forward pass of images ``float [N, C, H, W]`` in [0, 1]."""
    training = model.training
    model.eval().channels_last = True
    _lay_out(model, torch.channels_last)
    try:
        with torch.no_grad():
            model(images.contiguous(memory_format=torch.channels_last))
    except (RuntimeError, BcuError):  # a network that fails for another reason fails the next time, too
        model.channels_last = False
    _lay_out(model, torch.contiguous_format)
    model.train(training)


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out all four-dimensional tensors of a module."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)


def in_order(images: Tensor, channel_order: str) -> Tensor:
    """Reorder the channels of RGB images ``[N, 3, H, W]`` to ``channel_order``."""
    return images.flip(1) if channel_order == BGR else images


def refuse_dependence(alone: Tensor, both: Tensor, name: str) -> None:
    """Refuse a network whose logits for an image depend on the other images of the batch.

    Measurements in batches would not hold for single images.

    Args:
        alone: Logits ``[M, K]`` of images, each in a batch of one.
        both: Logits ``[N, K]`` of a batch of those images, followed by other images.
        name: Name of the network in errors.

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


def name_of(network: nn.Module | None) -> str:
    """Name in errors of a network, which need not be a :class:`Classifier` or known."""
    return str(getattr(network, "name", THE_NETWORK))


def not_finite(name: str) -> AnswersError:
    """The error for a network with NaN or infinite answers."""
    return AnswersError(
        f"{name} answers with NaN or infinite numbers",
        "its weights or its normalisation are far too large or damaged; get another copy",
    )


def no_numbers(network: nn.Module | None) -> BcuError:
    """The error for a network with NaN or infinite answers, which a training may have led to."""
    if isinstance(network, Classifier) and network.trained:
        return TrainingError(
            "the training diverged: the network that it led to answers with NaN or infinite numbers",
            "use --precision fp32, or a lower --learning-rate",
        )
    return not_finite(name_of(network))


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
